//! Requests with a token, as AWS demands and Alibaba Cloud allows to demand.

use std::{
    fmt,
    time::{Duration, Instant},
};

use crate::{
    Client, Provider,
    reading::ReadError,
    request_error::{Problem, RequestError},
};

/// What a token lives, in seconds: six hours, the most that both clouds allow.
const LIFE: &str = "21600";

/// The age at which a token is renewed without waiting for a 401.
const OLD: Duration = Duration::from_secs(21_600 - 300);

/// The longest token in bytes. AWS' have 56.
const LONGEST_TOKEN: usize = 4096;

/// Where a token comes from, the same in both clouds.
const PATH: &str = "/latest/api/token";

/// What allows a request.
#[derive(Clone)]
pub(crate) enum Credential {
    Token {
        text: String,
        since: Instant,
    },
    /// The service has no tokens.
    Plain,
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Token { .. } => "Token",
            Self::Plain => "Plain",
        })
    }
}

/// The names of the headers of tokens.
struct Names {
    life: &'static str,
    token: &'static str,
}

/// A cloud's requests during one read.
#[derive(Debug)]
pub(crate) struct Session<'s> {
    provider: Provider,
    client: &'s Client,
    credential: &'s mut Option<Credential>,
}

impl<'s> Session<'s> {
    /// Begins a read. That a service had no tokens is forgotten: it may demand them now.
    pub(crate) fn new(
        provider: Provider,
        client: &'s Client,
        credential: &'s mut Option<Credential>,
    ) -> Self {
        credential.take_if(|known| match known {
            Credential::Token { since, .. } => since.elapsed() >= OLD,
            Credential::Plain => true,
        });
        Self {
            provider,
            client,
            credential,
        }
    }

    const fn names(&self) -> Option<Names> {
        match self.provider {
            Provider::Aws => Some(Names {
                life: "X-aws-ec2-metadata-token-ttl-seconds",
                token: "X-aws-ec2-metadata-token",
            }),
            Provider::Alibaba => Some(Names {
                life: "X-aliyun-ecs-metadata-token-ttl-seconds",
                token: "X-aliyun-ecs-metadata-token",
            }),
            Provider::Azure | Provider::Gcp | Provider::Tencent => None,
        }
    }

    /// Gets a text; a 404 is `None`. A token that is no longer valid is renewed, once a request.
    pub(crate) async fn get(&mut self, path: &str) -> Result<Option<String>, ReadError> {
        let client = self.client;
        let mut may_renew = true;
        loop {
            let answer = match self.names() {
                None => client.get(path, &[]).await,
                Some(names) => match self.credential(&names).await? {
                    Credential::Plain => client.get(path, &[]).await,
                    Credential::Token { text, .. } => {
                        client.get(path, &[(names.token, text)]).await
                    }
                },
            };
            match answer {
                Err(error) if may_renew && matches!(error.problem, Problem::Unauthorized) => {
                    may_renew = false;
                    *self.credential = None;
                }
                answer => return Ok(answer?.map(|answer| answer.text)),
            }
        }
    }

    /// Returns the error of a 404 where there must be something.
    pub(crate) fn no_list(&self, path: &str) -> ReadError {
        ReadError::NoList {
            url: format!("{}{path}", self.client.endpoint()),
            cloud: self.provider.title(),
        }
    }

    async fn credential(&mut self, names: &Names) -> Result<&Credential, ReadError> {
        let new = match self.credential.take() {
            Some(known) => known,
            None => self.token(names).await?,
        };
        Ok(self.credential.insert(new))
    }

    async fn token(&self, names: &Names) -> Result<Credential, ReadError> {
        let is_optional = self.provider == Provider::Alibaba;
        match self.client.put(PATH, &[(names.life, LIFE)]).await {
            Ok(Some(answer)) => {
                let text = answer.text.trim();
                let is_token = (1..=LONGEST_TOKEN).contains(&text.len())
                    && text.bytes().all(|byte| byte.is_ascii_graphic());
                match is_token {
                    true => Ok(Credential::Token {
                        text: text.to_owned(),
                        since: Instant::now(),
                    }),
                    false => Err(ReadError::Request(RequestError {
                        method: "PUT".to_owned(),
                        url: format!("{}{PATH}", self.client.endpoint()),
                        problem: Problem::Malformed("the answer is no token".to_owned()),
                    })),
                }
            }
            Ok(None) if is_optional => Ok(Credential::Plain),
            Ok(None) => Err(self.no_list(PATH)),
            // Older services refuse the method; whether a plain GET is allowed is seen from that.
            Err(RequestError {
                problem: Problem::TurnedOff | Problem::Status(400..500),
                ..
            }) if is_optional => Ok(Credential::Plain),
            Err(error) => match error.problem {
                Problem::NoAnswer(_) if self.provider == Provider::Aws => {
                    Err(ReadError::HopLimit(error))
                }
                _ => Err(error.into()),
            },
        }
    }
}
