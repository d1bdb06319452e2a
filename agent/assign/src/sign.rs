//! Requests and their signatures (Signature Version 4).
//!
//! A request is signed with the time at which this controller last *knew* that it is the leader, never with a later one.
//! AWS refuses what is older than five minutes. So a leader that was paused for longer than that, and then goes on where
//! it was, is refused: see [`crate::plan`] for why that makes taking addresses away safe.

use std::time::SystemTime;

use aws_credential_types::Credentials;
use aws_sigv4::{
    http_request::{SignableBody, SignableRequest, SigningError, SigningSettings, sign},
    sign::v4,
};
use hyper::{
    Method, Request,
    header::{CONTENT_TYPE, HeaderName, HeaderValue},
};

use crate::{Endpoint, form::Form};

/// Why a request cannot be signed.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// The signature cannot be computed.
    #[error("sign a request: {0}")]
    Signature(#[from] SigningError),
    /// A part is missing.
    #[error("sign a request: {0}")]
    Parameters(#[from] v4::signing_params::BuildError),
    /// A header's value is none.
    #[error("sign a request: {0}")]
    Header(#[from] hyper::http::Error),
}

const FORM: &str = "application/x-www-form-urlencoded; charset=utf-8";

/// Returns a request that is not signed.
pub(crate) fn plain(form: Form) -> Request<String> {
    let mut request = Request::new(form.into_text());
    *request.method_mut() = Method::POST;
    request
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(FORM));
    request
}

/// Returns the form by which a token is exchanged for credentials; it is not signed.
pub(crate) fn web_identity(role: &str, token: &str) -> Form {
    Form::new("AssumeRoleWithWebIdentity", "2011-06-15")
        .with("RoleArn", role)
        .with("RoleSessionName", "ebbtide-cloud-controller")
        .with("DurationSeconds", "3600")
        .with("WebIdentityToken", token)
}

/// Returns a signed request to EC2.
pub(crate) fn signed(
    form: Form,
    endpoint: &Endpoint,
    region: &str,
    keys: &Credentials,
    time: SystemTime,
) -> Result<Request<String>, SignError> {
    let mut request = plain(form);
    let identity = keys.clone().into();
    let parameters = v4::SigningParams::builder()
        .identity(&identity)
        .region(region)
        .name("ec2")
        .time(time)
        .settings(SigningSettings::default())
        .build()?
        .into();
    let authority = endpoint.authority();
    let headers = [("content-type", FORM), ("host", authority.as_str())];
    let body = SignableBody::Bytes(request.body().as_bytes());
    let url = endpoint.to_string();
    let signable = SignableRequest::new("POST", url, headers.into_iter(), body)?;
    let (instructions, _signature) = sign(signable, &parameters)?.into_parts();
    for (name, value) in instructions.headers() {
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(hyper::http::Error::from)?;
        let mut value = HeaderValue::from_str(value).map_err(hyper::http::Error::from)?;
        value.set_sensitive(true);
        request.headers_mut().insert(name, value);
    }
    Ok(request)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_request_is_signed_with_the_time_that_it_is_given_and_shows_no_secret() {
        let keys = Credentials::new("AKID", "hush", Some("session".into()), None, "test");
        let endpoint = Endpoint::of("ec2", "eu-west-1").unwrap();
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let form = Form::new("DescribeNetworkInterfaces", "2016-11-15");
        let request = signed(form, &endpoint, "eu-west-1", &keys, time).unwrap();
        let header = |name| request.headers()[name].to_str().unwrap();
        assert_eq!(header("x-amz-date"), "20231114T221320Z");
        assert_eq!(header("x-amz-security-token"), "session");
        // Computed in another language, from the specification.
        assert_eq!(
            header("authorization"),
            "AWS4-HMAC-SHA256 Credential=AKID/20231114/eu-west-1/ec2/aws4_request, \
             SignedHeaders=content-type;host;x-amz-date;x-amz-security-token, \
             Signature=433aff5f5cb3d18b0fe90338c4d34dc7216c4b2c5aadd03dd9543cba51ded19b"
        );
        let shown = format!("{request:?} {keys:?}");
        assert!(
            !shown.contains("hush") && !shown.contains("\"session\""),
            "{shown}"
        );
    }
}
