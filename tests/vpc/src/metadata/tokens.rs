//! Session tokens: those of AWS' service, and of Alibaba Cloud's, which is made after it.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use hyper::Method;

use super::{
    Cloud,
    exchange::{Asked, Reply},
};

/// The tokens in force.
#[derive(Debug, Default)]
pub(super) struct Tokens(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    issued: u64,
    tokens: HashMap<String, Token>,
}

#[derive(Debug)]
struct Token {
    node: String,
    cloud: Cloud,
    until: Instant,
}

/// The words of a cloud for its tokens.
#[derive(Debug)]
pub(super) struct Form {
    pub(super) cloud: Cloud,
    pub(super) life_header: &'static str,
    pub(super) token_header: &'static str,
}

/// The path, with PUT.
const PATH: [&str; 3] = ["latest", "api", "token"];
/// The longest life in seconds.
const LONGEST: u64 = 21_600;

impl Tokens {
    /// Returns the reply to what is not a GET with a right to be answered; `None` if it is one. A token is optional for
    /// who may ask without, but a wrong one never passes.
    pub(super) fn screen(
        &self,
        asked: &Asked,
        node: &str,
        form: &Form,
        longest: Duration,
        is_needed: bool,
    ) -> Option<Reply> {
        if asked.parts() == PATH {
            return Some(match asked.method {
                Method::PUT => self.issue(asked, node, form, longest),
                _ => Reply::failure(405).with("allow", "OPTIONS, PUT"),
            });
        }
        if asked.method != Method::GET && asked.method != Method::HEAD {
            return Some(Reply::failure(405).with("allow", "GET, HEAD"));
        }
        let is_valid = match asked.header(form.token_header) {
            Some(token) => self.is_valid(token, node, form.cloud),
            None => !is_needed,
        };
        (!is_valid).then(|| Reply::failure(401))
    }

    fn issue(&self, asked: &Asked, node: &str, form: &Form, longest: Duration) -> Reply {
        // So that no proxy hands its tokens on.
        if asked.is_forwarded() {
            return Reply::failure(403);
        }
        let life = asked
            .header(form.life_header)
            .and_then(|life| life.parse().ok());
        let Some(life @ 1..=LONGEST) = life else {
            return Reply::failure(400);
        };
        let mut state = self.lock();
        state.issued += 1;
        let token = format!("AQAEA{:018}{:?}==", state.issued, form.cloud);
        state.tokens.insert(
            token.clone(),
            Token {
                node: node.to_owned(),
                cloud: form.cloud,
                until: Instant::now() + Duration::from_secs(life).min(longest),
            },
        );
        Reply::text(200, token).with(form.life_header, life.to_string())
    }

    fn is_valid(&self, token: &str, node: &str, cloud: Cloud) -> bool {
        self.lock().tokens.get(token).is_some_and(|token| {
            token.node == node && token.cloud == cloud && Instant::now() < token.until
        })
    }

    /// Lets all tokens of a node expire.
    pub(super) fn expire(&self, node: &str) {
        self.lock().tokens.retain(|_, token| token.node != node);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
