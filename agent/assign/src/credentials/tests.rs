use std::collections::BTreeMap;

use super::*;
use crate::double::{PrefixDouble, answer};

fn chosen(set: &[(&str, &str)]) -> Result<Source, CredentialsError> {
    let set: BTreeMap<&str, &str> = set.iter().copied().collect();
    let sts = "http://127.0.0.1:9".parse().unwrap();
    Source::choose(|name| set.get(name).map(|value| (*value).to_owned()), &sts)
}

#[test]
fn the_environment_says_whose_rights_they_are_and_the_nodes_are_never_taken() {
    let token = ("AWS_WEB_IDENTITY_TOKEN_FILE", "/t");
    let role = ("AWS_ROLE_ARN", "arn:r");
    let uri = "AWS_CONTAINER_CREDENTIALS_FULL_URI";
    let file = ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", "/p");
    for (set, said) in [
        (
            vec![
                ("AWS_ACCESS_KEY_ID", "AKID"),
                ("AWS_SECRET_ACCESS_KEY", "hush"),
                token,
                role,
            ],
            "the environment's key AKID",
        ),
        (vec![token, role], "the role arn:r, by the pod's token"),
        (
            vec![(uri, "http://169.254.170.23/v1/credentials"), file],
            "Pod Identity at http://169.254.170.23/v1/credentials",
        ),
        (vec![], "no credentials: annotate"),
        (
            vec![("AWS_ACCESS_KEY_ID", "AKID")],
            "AWS_SECRET_ACCESS_KEY is not",
        ),
        (vec![token], "AWS_ROLE_ARN is not"),
        (
            vec![(uri, "http://10.0.0.1/x"), file],
            "neither encrypted nor on this machine",
        ),
        (
            vec![(uri, "nonsense"), file],
            "is not the address of a service",
        ),
        (
            vec![(uri, "http://127.0.0.1/x")],
            "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE is not",
        ),
    ] {
        let shown = match chosen(&set) {
            Ok(source) => format!("{source:?}"),
            Err(error) => error.to_string(),
        };
        assert!(shown.contains(said), "{set:?}: {shown}");
        assert!(!shown.contains("hush"), "{shown}");
    }
}

fn token() -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), "the-token\n").unwrap();
    file
}

fn provider(source: Source) -> Provider {
    let transport = Transport::new(None).unwrap().within(Duration::from_secs(2));
    Provider::new(source, transport)
}

fn stamp(time: SystemTime) -> String {
    k8s_openapi::jiff::Timestamp::try_from(time)
        .unwrap()
        .to_string()
}

fn of_agent(id: &str, expires: SystemTime) -> String {
    let expires = stamp(expires);
    answer(
        200,
        &format!(
            r#"{{"AccessKeyId": "{id}", "SecretAccessKey": "hush", "Token": "t", "Expiration": "{expires}"}}"#
        ),
    )
}

#[tokio::test]
async fn credentials_are_kept_and_renewed_five_minutes_before_their_end() {
    let (double, file) = (PrefixDouble::start().await, token());
    let source = Source::Container {
        endpoint: format!("{}/v1/credentials", double.url).parse().unwrap(),
        token: file.path().to_owned(),
    };
    let provider = provider(source);
    let now = SystemTime::now();
    let minutes = |count: u64| Duration::from_secs(60 * count);
    double.then(of_agent("one", now + minutes(60)));
    double.then(of_agent("two", now + minutes(120)));
    double.then(answer(500, ""));
    double.then(answer(403, ""));
    let id = async |at| {
        provider
            .current(now + at)
            .await
            .map(|keys| keys.access_key_id().to_owned())
    };
    assert_eq!(id(minutes(0)).await.unwrap(), "one");
    assert!(
        double.last().starts_with("GET /v1/credentials "),
        "{}",
        double.last()
    );
    assert!(
        double.last().contains("authorization: the-token"),
        "{}",
        double.last()
    );
    assert_eq!(id(minutes(54)).await.unwrap(), "one");
    assert_eq!(id(minutes(56)).await.unwrap(), "two");
    // Refused, but what there is lasts for some minutes.
    assert_eq!(id(minutes(117)).await.unwrap(), "two");
    let error = id(minutes(119) + Duration::from_secs(30))
        .await
        .unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("gives no credentials: status 403"),
        "{error}"
    );
    assert!(!format!("{provider:?}").contains("hush"));
}

#[tokio::test]
async fn the_pods_token_is_exchanged_for_a_roles_credentials() {
    let (double, file) = (PrefixDouble::start().await, token());
    let source = Source::WebIdentity {
        role: "arn:aws:iam::1:role/r".into(),
        token: file.path().to_owned(),
        endpoint: double.url.parse().unwrap(),
    };
    let provider = provider(source);
    let now = SystemTime::now();
    let expires = stamp(now + Duration::from_secs(3600));
    double.then(answer(200, &format!(
        "<AssumeRoleWithWebIdentityResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">\
         <AssumeRoleWithWebIdentityResult><Credentials><AccessKeyId>ASIA</AccessKeyId><SecretAccessKey>hush</SecretAccessKey>\
         <SessionToken>s</SessionToken><Expiration>{expires}</Expiration></Credentials></AssumeRoleWithWebIdentityResult>\
         </AssumeRoleWithWebIdentityResponse>"
    )));
    let keys = provider.current(now).await.unwrap();
    assert_eq!(
        (keys.access_key_id(), keys.session_token()),
        ("ASIA", Some("s"))
    );
    let asked = double.last();
    assert!(
        asked.contains("&RoleArn=arn%3Aaws%3Aiam%3A%3A1%3Arole%2Fr&"),
        "{asked}"
    );
    assert!(
        asked.ends_with("&WebIdentityToken=the-token") && !asked.contains("authorization"),
        "{asked}"
    );
}
