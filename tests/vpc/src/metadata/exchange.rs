//! A request and a reply, in the terms of the dialects.

use std::{collections::BTreeMap, net::IpAddr};

use hyper::{HeaderMap, Method};

/// A request.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) method: Method,
    /// The path, without the query.
    pub(super) path: String,
    pub(super) query: BTreeMap<String, String>,
    pub(super) headers: HeaderMap,
    /// The address that it came from.
    pub(super) source: IpAddr,
}

impl Asked {
    /// Returns a header's value, if it is text.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// Whether a proxy says that it passed the request on. All services but Tencent Cloud's refuse that somewhere.
    pub(super) fn is_forwarded(&self) -> bool {
        self.headers.contains_key("x-forwarded-for")
    }

    /// Returns the path's parts, of which none is empty.
    pub(super) fn parts(&self) -> Vec<&str> {
        self.path
            .split('/')
            .filter(|part| !part.is_empty())
            .collect()
    }

    /// Whether the query has this set.
    pub(super) fn is_set(&self, name: &str) -> bool {
        self.query
            .get(name)
            .is_some_and(|value| value.eq_ignore_ascii_case("true"))
    }
}

/// Parses a query. What clients of metadata services write has no escapes.
pub(super) fn query(text: &str) -> BTreeMap<String, String> {
    text.split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

/// A reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) body: Vec<u8>,
}

impl Reply {
    /// A reply of text.
    pub(super) fn text(status: u16, body: impl Into<String>) -> Self {
        Self {
            status,
            headers: vec![("content-type", "text/plain".into())],
            body: body.into().into_bytes(),
        }
    }

    /// A reply of JSON.
    pub(super) fn json(status: u16, body: &serde_json::Value) -> Self {
        Self {
            status,
            headers: vec![("content-type", "application/json; charset=utf-8".into())],
            body: body.to_string().into_bytes(),
        }
    }

    /// A failure, as AWS' service words it and those made after it.
    pub(super) fn failure(status: u16) -> Self {
        let reason = match status {
            400 => "Bad Request",
            401 => "Unauthorized",
            403 => "Forbidden",
            404 => "Not Found",
            405 => "Method Not Allowed",
            429 => "Too Many Requests",
            _ => "Internal Server Error",
        };
        let body = format!(
            "<?xml version=\"1.0\" encoding=\"iso-8859-1\"?>\n\
             <!DOCTYPE html PUBLIC \"-//W3C//DTD XHTML 1.0 Transitional//EN\"\n\
             \t\"http://www.w3.org/TR/xhtml1/DTD/xhtml1-transitional.dtd\">\n\
             <html xmlns=\"http://www.w3.org/1999/xhtml\" xml:lang=\"en\" lang=\"en\">\n \
             <head>\n  <title>{status} - {reason}</title>\n </head>\n \
             <body>\n  <h1>{status} - {reason}</h1>\n </body>\n</html>\n"
        );
        Self::text(status, body).with("content-type", "text/html")
    }

    /// Sets a header.
    pub(super) fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.retain(|(other, _)| *other != name);
        self.headers.push((name, value.into()));
        self
    }
}
