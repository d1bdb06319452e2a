//! Whose rights the requests have: keys of the environment, a role by the pod's own token, or EKS' Pod Identity.
//!
//! The node's role, which the metadata service would give, is never used. Every pod that reaches that service has it too,
//! so rights to change NICs would be everybody's.

use std::{
    fmt, fs,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use aws_credential_types::Credentials;
use hyper::{
    Method, Request,
    header::{AUTHORIZATION, HeaderValue},
};
use serde::Deserialize;
use tokio::sync::Mutex;
use tracing::warn;

use crate::{
    BadEndpoint, Endpoint, Transport, TransportError,
    refusal::{Refusal, refusal},
    sign, xml,
};

/// How long before their end credentials are renewed.
const EARLY: Duration = Duration::from_secs(300);

/// How long before their end they are not used any more.
const LAST: Duration = Duration::from_secs(60);

/// The longest token file in bytes.
const LONGEST_TOKEN: u64 = 64 << 10;

/// Where credentials come from.
#[derive(Clone)]
pub enum Source {
    /// `AWS_ACCESS_KEY_ID` and the like.
    Environment(Credentials),
    /// A role, by a token that the kubelet writes (IAM roles for service accounts).
    WebIdentity {
        /// The role's ARN.
        role: String,
        /// The token's file.
        token: PathBuf,
        /// STS.
        endpoint: Endpoint,
    },
    /// An agent on the node (EKS Pod Identity).
    Container {
        /// Its address, with the path.
        endpoint: Endpoint,
        /// The token's file.
        token: PathBuf,
    },
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Environment(keys) => {
                write!(f, "the environment's key {}", keys.access_key_id())
            }
            Self::WebIdentity { role, .. } => write!(f, "the role {role}, by the pod's token"),
            Self::Container { endpoint, .. } => write!(f, "Pod Identity at {endpoint}"),
        }
    }
}

/// Why there are no credentials.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// The environment has none.
    #[error(
        "no credentials: annotate the ServiceAccount with a role (IRSA), make a Pod Identity association, or set \
         AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY. The node's role is not used"
    )]
    None,
    /// A variable has half of what is needed, or nonsense.
    #[error("{0} is set, but {1}")]
    Environment(&'static str, String),
    /// The token's file cannot be read.
    #[error("the token in {0} cannot be read: {1}")]
    Token(String, String),
    /// The service refuses.
    #[error("{0} gives no credentials: {1}")]
    Refused(String, Refusal),
    /// It does not answer.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// Its answer cannot be read.
    #[error("the answer of {0} with credentials {1}")]
    Unreadable(String, String),
}

impl Source {
    /// Chooses what the environment has, in the order of AWS' own programs.
    ///
    /// # Errors
    /// If it has nothing, or half of something.
    pub fn choose(
        get: impl Fn(&str) -> Option<String>,
        sts: &Endpoint,
    ) -> Result<Self, CredentialsError> {
        let get = |name: &str| get(name).filter(|value| !value.trim().is_empty());
        let with = |name, other: &'static str| {
            get(other).ok_or_else(|| CredentialsError::Environment(name, format!("{other} is not")))
        };
        if let Some(id) = get("AWS_ACCESS_KEY_ID") {
            let secret = with("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")?;
            let session = get("AWS_SESSION_TOKEN");
            let keys = Credentials::new(id, secret, session, None, "environment");
            return Ok(Self::Environment(keys));
        }
        if let Some(token) = get("AWS_WEB_IDENTITY_TOKEN_FILE") {
            return Ok(Self::WebIdentity {
                role: with("AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_ROLE_ARN")?,
                token: token.into(),
                endpoint: sts.clone(),
            });
        }
        const URI: &str = "AWS_CONTAINER_CREDENTIALS_FULL_URI";
        if let Some(uri) = get(URI) {
            let bad = |e: BadEndpoint| CredentialsError::Environment(URI, e.to_string());
            let endpoint: Endpoint = uri.parse().map_err(bad)?;
            if !endpoint.is_encrypted() && !endpoint.is_local() {
                let reason = format!("{endpoint} is neither encrypted nor on this machine");
                return Err(CredentialsError::Environment(URI, reason));
            }
            let token = with(URI, "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE")?.into();
            return Ok(Self::Container { endpoint, token });
        }
        Err(CredentialsError::None)
    }

    async fn fetch(&self, transport: &Transport) -> Result<Credentials, CredentialsError> {
        match self {
            Self::Environment(keys) => Ok(keys.clone()),
            Self::WebIdentity {
                role,
                token,
                endpoint,
            } => {
                let request = sign::plain(sign::web_identity(role, &read(token)?));
                let answer = transport.send(endpoint, request).await?;
                let name = endpoint.to_string();
                if answer.status != 200 {
                    let refusal = refusal(answer.status, &answer.text);
                    return Err(CredentialsError::Refused(name, refusal));
                }
                of_sts(&answer.text)
                    .ok_or_else(|| CredentialsError::Unreadable(name, "cannot be read".to_owned()))
            }
            Self::Container { endpoint, token } => {
                let mut request = Request::new(String::new());
                *request.method_mut() = Method::GET;
                let bad = |_| CredentialsError::Token(shown(token), "it has odd characters".into());
                let mut value = HeaderValue::from_str(&read(token)?).map_err(bad)?;
                value.set_sensitive(true);
                request.headers_mut().insert(AUTHORIZATION, value);
                let answer = transport.send(endpoint, request).await?;
                let name = endpoint.to_string();
                if answer.status != 200 {
                    let refusal = refusal(answer.status, &answer.text);
                    return Err(CredentialsError::Refused(name, refusal));
                }
                of_container(&answer.text)
                    .ok_or_else(|| CredentialsError::Unreadable(name, "cannot be read".to_owned()))
            }
        }
    }
}

fn shown(path: &std::path::Path) -> String {
    path.display().to_string()
}

/// Reads a token anew each time: the kubelet replaces it.
fn read(path: &std::path::Path) -> Result<String, CredentialsError> {
    let bad = |reason: String| CredentialsError::Token(shown(path), reason);
    let size = fs::metadata(path).map_err(|e| bad(e.to_string()))?.len();
    if size > LONGEST_TOKEN {
        return Err(bad(format!("it has {size} bytes")));
    }
    let text = fs::read_to_string(path).map_err(|e| bad(e.to_string()))?;
    Ok(text.trim().to_owned())
}

fn time(text: &str) -> Option<SystemTime> {
    text.parse::<k8s_openapi::jiff::Timestamp>()
        .ok()
        .map(SystemTime::from)
}

fn of_sts(text: &str) -> Option<Credentials> {
    let document = xml::parse(text).ok()?;
    let found = xml::find(document.root(), "Credentials")?;
    let get = |name| xml::text(found, name).map(str::to_owned);
    let expires = time(&get("Expiration")?)?;
    Some(Credentials::new(
        get("AccessKeyId")?,
        get("SecretAccessKey")?,
        Some(get("SessionToken")?),
        Some(expires),
        "web identity",
    ))
}

fn of_container(text: &str) -> Option<Credentials> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Answer {
        access_key_id: String,
        secret_access_key: String,
        token: String,
        expiration: String,
    }
    let answer: Answer = serde_json::from_str(text).ok()?;
    let expires = time(&answer.expiration)?;
    Some(Credentials::new(
        answer.access_key_id,
        answer.secret_access_key,
        Some(answer.token),
        Some(expires),
        "pod identity",
    ))
}

/// A source, with what it gave last.
#[derive(Debug)]
pub struct Provider {
    source: Source,
    transport: Transport,
    last: Mutex<Option<Credentials>>,
}

impl Provider {
    /// Returns it; nothing is asked yet.
    #[must_use]
    pub fn new(source: Source, transport: Transport) -> Self {
        Self {
            source,
            transport,
            last: Mutex::new(None),
        }
    }

    /// Returns credentials that are valid for a minute at least, and renews them five minutes before their end.
    pub(crate) async fn current(&self, now: SystemTime) -> Result<Credentials, CredentialsError> {
        let mut last = self.last.lock().await;
        if let Some(known) = last.as_ref().filter(|known| lasts(known, now, EARLY)) {
            return Ok(known.clone());
        }
        match self.source.fetch(&self.transport).await {
            Ok(fresh) => Ok(last.insert(fresh).clone()),
            Err(error) => match last.as_ref().filter(|known| lasts(known, now, LAST)) {
                Some(known) => {
                    warn!("credentials are not renewed yet: {error}");
                    Ok(known.clone())
                }
                None => Err(error),
            },
        }
    }
}

fn lasts(keys: &Credentials, now: SystemTime, more: Duration) -> bool {
    keys.expiry().is_none_or(|end| end > now + more)
}

#[cfg(test)]
mod tests;
