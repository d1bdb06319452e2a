//! Counts what the API server was asked, and how it answered.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use futures::future::BoxFuture;
use hyper::{Method, Request, Response};
use tower::{Layer, Service};

/// The number of requests by verb and answer. All clones share it.
///
/// The verbs are HTTP's, and `WATCH`. The answer is the status code, or `error` if there was none.
#[derive(Clone, Debug, Default)]
pub struct ApiCalls(Arc<Mutex<BTreeMap<(&'static str, Answer), u64>>>);

/// How the API server answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Answer {
    /// By this status code.
    Code(u16),
    /// Not at all: no connection, or it broke.
    Error,
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => code.fmt(f),
            Self::Error => f.write_str("error"),
        }
    }
}

impl ApiCalls {
    /// Returns the number of requests by verb and answer.
    #[must_use]
    pub fn counted(&self) -> Vec<(&'static str, Answer, u64)> {
        let counted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let all = counted.iter();
        all.map(|((verb, answer), count)| (*verb, *answer, *count))
            .collect()
    }

    fn count(&self, verb: &'static str, answer: Answer) {
        let mut counted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *counted.entry((verb, answer)).or_default() += 1;
    }
}

/// Returns the verb of a request. Others than these are not made.
fn verb(method: &Method, query: Option<&str>) -> &'static str {
    let is_watch = |query: &str| {
        let mut words = query.split('&');
        words.any(|word| matches!(word, "watch=true" | "watch=1"))
    };
    match method.as_str() {
        "GET" if query.is_some_and(is_watch) => "WATCH",
        "GET" => "GET",
        "POST" => "POST",
        "PUT" => "PUT",
        "PATCH" => "PATCH",
        "DELETE" => "DELETE",
        _ => "other",
    }
}

impl<S> Layer<S> for ApiCalls {
    type Service = Counting<S>;

    fn layer(&self, inner: S) -> Counting<S> {
        Counting {
            inner,
            calls: self.clone(),
        }
    }
}

/// A service whose requests are counted.
#[derive(Clone, Debug)]
pub struct Counting<S> {
    inner: S,
    calls: ApiCalls,
}

impl<S, A, B> Service<Request<A>> for Counting<S>
where
    S: Service<Request<A>, Response = Response<B>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<S::Response, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<A>) -> Self::Future {
        let verb = verb(request.method(), request.uri().query());
        let calls = self.calls.clone();
        let answered = self.inner.call(request);
        Box::pin(async move {
            let answered = answered.await;
            calls.count(
                verb,
                match &answered {
                    Ok(response) => Answer::Code(response.status().as_u16()),
                    Err(_) => Answer::Error,
                },
            );
            answered
        })
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use tower::service_fn;

    use super::*;

    #[tokio::test]
    async fn requests_are_counted_by_verb_and_answer() {
        let calls = ApiCalls::default();
        let server = service_fn(|request: Request<()>| async move {
            let mut response = Response::new(());
            if request.uri().path() == "/gone" {
                *response.status_mut() = hyper::StatusCode::NOT_FOUND;
            }
            Ok::<_, Infallible>(response)
        });
        let mut counted = calls.layer(server);
        for (method, uri) in [
            ("GET", "/gone"),
            ("GET", "/pods?watch=true&resourceVersion=7"),
            ("GET", "/pods?limit=1"),
            ("GET", "/pods"),
            ("PATCH", "/pods"),
            ("OPTIONS", "/pods?watch=true"),
        ] {
            let request = Request::builder().method(method).uri(uri);
            counted.call(request.body(()).unwrap()).await.unwrap();
        }
        let mut broken = calls.layer(service_fn(|_: Request<()>| async {
            Err::<Response<()>, _>("no connection")
        }));
        let request = Request::builder().uri("/pods").body(()).unwrap();
        broken.call(request).await.unwrap_err();
        let found: Vec<String> = calls
            .counted()
            .into_iter()
            .map(|(verb, answer, count)| format!("{verb} {answer} {count}"))
            .collect();
        assert_eq!(
            found,
            [
                "GET 200 2",
                "GET 404 1",
                "GET error 1",
                "PATCH 200 1",
                "WATCH 200 1",
                "other 200 1",
            ]
        );
    }
}
