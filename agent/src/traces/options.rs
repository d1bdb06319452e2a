//! Where spans are exported to: OpenTelemetry's standard environment variables.

use std::time::Duration;

use http::{HeaderName, HeaderValue, Uri, uri::Scheme};
use percent_encoding::percent_decode_str;

/// The collector's time limit for a batch, unless the environment has another one.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Where spans are exported to, and which.
#[derive(Clone, Debug)]
pub struct Options {
    pub(super) endpoint: Endpoint,
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
    pub(super) timeout: Duration,
    pub(super) sampler: Sampler,
    /// What the spans have in common.
    pub(super) resource: Vec<(String, String)>,
}

/// A collector's address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Endpoint {
    /// A name or an address, IPv6 without brackets.
    pub(super) host: String,
    pub(super) port: u16,
    /// As in the header `Host`.
    pub(super) authority: String,
    pub(super) path: String,
}

/// Which requests are exported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sampler {
    /// Whether the runtime's decision counts, where there is one.
    pub(super) by_parent: bool,
    /// Those for which it does not.
    pub(super) others: bool,
}

impl Options {
    /// Reads the environment. Returns also what of it has no effect, or another one than one may expect.
    pub(super) fn read(
        node: &str,
        in_cluster: bool,
        variable: impl Fn(&str) -> Option<String>,
    ) -> (Option<Self>, Vec<String>) {
        let mut troubles = Vec::new();
        let options = read(node, in_cluster, &variable, &mut troubles);
        (options, troubles)
    }
}

fn read(
    node: &str,
    in_cluster: bool,
    variable: &dyn Fn(&str) -> Option<String>,
    troubles: &mut Vec<String>,
) -> Option<Options> {
    // Empty counts as absent, as the specification says.
    let set = |name: &str| variable(name).filter(|value| !value.trim().is_empty());
    let of_traces = |name: &str| {
        let names = [
            format!("OTEL_EXPORTER_OTLP_TRACES_{name}"),
            format!("OTEL_EXPORTER_OTLP_{name}"),
        ];
        names.into_iter().find_map(|name| {
            let value = set(&name)?;
            Some((name, value.trim().to_owned()))
        })
    };
    let (name, url) = of_traces("ENDPOINT")?;
    if set("OTEL_SDK_DISABLED").is_some_and(|value| value.trim().eq_ignore_ascii_case("true")) {
        return None;
    }
    match set("OTEL_TRACES_EXPORTER").as_deref().map(str::trim) {
        None | Some("otlp") => {}
        Some("none") => return None,
        Some(other) => {
            troubles.push(format!(
                "OTEL_TRACES_EXPORTER={other:?} is not known here (otlp, none): no span is exported"
            ));
            return None;
        }
    }
    if let Some((name, protocol)) = of_traces("PROTOCOL") {
        match protocol.as_str() {
            "http/json" => {}
            "http/protobuf" => troubles.push(format!(
                "{name}={protocol}: spans are exported as http/json, which collectors take at the same port"
            )),
            _ => {
                troubles.push(format!(
                    "{name}={protocol:?}: spans can only be exported by http/json (collectors' port is 4318); none is"
                ));
                return None;
            }
        }
    }
    // The general variable names a collector, that of traces the whole URL.
    let suffix = match name.contains("_TRACES_") {
        true => "",
        false => "v1/traces",
    };
    let endpoint = match endpoint(&url, suffix) {
        Ok(endpoint) => endpoint,
        Err(reason) => {
            troubles.push(format!("{name}={url:?} {reason}: no span is exported"));
            return None;
        }
    };
    let timeout = match of_traces("TIMEOUT") {
        None => TIMEOUT,
        Some((name, value)) => match value.parse() {
            Ok(millis) if millis > 0 => Duration::from_millis(millis),
            _ => {
                troubles.push(format!(
                    "{name}={value:?} is no number of milliseconds: {} s it is",
                    TIMEOUT.as_secs()
                ));
                TIMEOUT
            }
        },
    };
    let headers = of_traces("HEADERS").map_or_else(Vec::new, |(name, value)| {
        pairs(&value, &name, troubles, |key, value| {
            let value = HeaderValue::from_str(&value).ok().map(|mut value| {
                // Keys of collectors are told in headers.
                value.set_sensitive(true);
                value
            });
            Some((HeaderName::from_bytes(key.as_bytes()).ok()?, value?))
        })
    });
    let sampler = set("OTEL_TRACES_SAMPLER");
    let sampler = match sampler.as_deref().map(str::trim) {
        Some("always_on") => (false, true),
        Some("always_off") => (false, false),
        Some("parentbased_always_off") => (true, false),
        None | Some("parentbased_always_on") => (true, true),
        Some(other) => {
            troubles.push(format!(
                "OTEL_TRACES_SAMPLER={other:?} is not known here (always_on, always_off, parentbased_always_on, \
                 parentbased_always_off): parentbased_always_on it is"
            ));
            (true, true)
        }
    };
    Some(Options {
        endpoint,
        headers,
        timeout,
        sampler: Sampler {
            by_parent: sampler.0,
            others: sampler.1,
        },
        resource: resource(node, in_cluster, &set, troubles),
    })
}

fn endpoint(url: &str, suffix: &str) -> Result<Endpoint, &'static str> {
    let uri: Uri = url.parse().map_err(|_| "is no URL")?;
    if uri.scheme() != Some(&Scheme::HTTP) {
        return Err(
            "does not begin with http:// (for TLS put a collector on the node or in the cluster)",
        );
    }
    let authority = uri.authority().ok_or("names no host")?;
    // With a password, it would have been before an @.
    let is_bare = authority.as_str().contains('@');
    let host = authority
        .host()
        .trim_start_matches('[')
        .trim_end_matches(']');
    if is_bare || host.is_empty() {
        return Err("must be http://HOST:PORT (passwords are for OTEL_EXPORTER_OTLP_HEADERS)");
    }
    let path = uri.path();
    let slash = if suffix.is_empty() || path.ends_with('/') {
        ""
    } else {
        "/"
    };
    Ok(Endpoint {
        host: host.to_owned(),
        port: authority.port_u16().unwrap_or(80),
        authority: authority.to_string(),
        path: format!("{path}{slash}{suffix}"),
    })
}

fn resource(
    node: &str,
    in_cluster: bool,
    set: &dyn Fn(&str) -> Option<String>,
    troubles: &mut Vec<String>,
) -> Vec<(String, String)> {
    const NAME: &str = "OTEL_RESOURCE_ATTRIBUTES";
    let mut all = vec![
        ("service.name", "ebbtide-agent"),
        ("service.version", env!("CARGO_PKG_VERSION")),
        ("host.name", node),
    ];
    if in_cluster {
        all.push(("k8s.node.name", node));
    }
    let mut all: Vec<(String, String)> = all
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect();
    let declared = set(NAME).map_or_else(Vec::new, |value| {
        pairs(&value, NAME, troubles, |key, value| {
            Some((key.to_owned(), value))
        })
    });
    let name = set("OTEL_SERVICE_NAME").map(|name| ("service.name".to_owned(), name));
    for (key, value) in declared.into_iter().chain(name) {
        all.retain(|(other, _)| *other != key);
        all.push((key, value));
    }
    all
}

/// Reads `key=value,key=value` with values in percent encoding. The values may be secret: no trouble tells one.
fn pairs<T>(
    text: &str,
    name: &str,
    troubles: &mut Vec<String>,
    read: impl Fn(&str, String) -> Option<T>,
) -> Vec<T> {
    let mut found = Vec::new();
    for (number, pair) in text.split(',').enumerate() {
        if pair.trim().is_empty() {
            continue;
        }
        let one = pair.split_once('=').and_then(|(key, value)| {
            let value = percent_decode_str(value.trim()).decode_utf8().ok()?;
            read(key.trim(), value.into_owned())
        });
        match one {
            Some(one) => found.push(one),
            None => troubles.push(format!(
                "{name}: number {} is no KEY=VALUE, and is left out",
                number + 1
            )),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(variables: &[(&str, &str)]) -> (Option<Options>, Vec<String>) {
        Options::read("node-1", true, |name| {
            let found = variables.iter().find(|(own, _)| *own == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn without_an_endpoint_nothing_is_exported_and_nothing_is_said() {
        let on = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318");
        for variables in [
            vec![],
            vec![("OTEL_EXPORTER_OTLP_ENDPOINT", " ")],
            vec![("OTEL_SERVICE_NAME", "x"), ("OTEL_TRACES_SAMPLER", "what")],
            vec![on, ("OTEL_SDK_DISABLED", "TRUE")],
            vec![on, ("OTEL_TRACES_EXPORTER", "none")],
        ] {
            let (options, troubles) = options(&variables);
            assert!(options.is_none(), "{variables:?}");
            assert_eq!(troubles, [""; 0], "{variables:?}");
        }
    }

    #[test]
    fn the_endpoint_is_read_as_the_specification_says() {
        const ALL: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
        const TRACES: &str = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";
        for (variable, url, endpoint) in [
            (
                ALL,
                "http://10.0.0.1:4318",
                Ok(("10.0.0.1", 4318, "/v1/traces")),
            ),
            (
                ALL,
                "http://10.0.0.1:4318/",
                Ok(("10.0.0.1", 4318, "/v1/traces")),
            ),
            (
                ALL,
                "http://collector.otel.svc/a/",
                Ok(("collector.otel.svc", 80, "/a/v1/traces")),
            ),
            (
                ALL,
                "http://[fd00::1]:4318/a",
                Ok(("fd00::1", 4318, "/a/v1/traces")),
            ),
            (TRACES, "http://h:1/x", Ok(("h", 1, "/x"))),
            (TRACES, "http://h:1", Ok(("h", 1, "/"))),
            (ALL, "https://h:4318", Err("http://")),
            (ALL, "h:4318", Err("http://")),
            (ALL, "http://u:p@h:4318", Err("passwords")),
            (ALL, "http://", Err("no URL")),
            (ALL, "nonsense with spaces", Err("no URL")),
        ] {
            let (options, troubles) = options(&[(variable, url)]);
            let found = options.as_ref().map(|options| {
                let Endpoint {
                    host, port, path, ..
                } = &options.endpoint;
                (host.as_str(), *port, path.as_str())
            });
            assert_eq!(found, endpoint.ok(), "{url}");
            match endpoint {
                Ok(_) => assert_eq!(troubles, [""; 0], "{url}"),
                Err(said) => {
                    assert_eq!(troubles.len(), 1, "{url}");
                    assert!(troubles[0].contains(said), "{troubles:?}");
                }
            }
        }
        let (options, _) = options(&[(ALL, "http://a:1"), (TRACES, "http://b:2/t")]);
        assert_eq!(options.unwrap().endpoint.host, "b");
    }

    #[test]
    fn what_is_not_understood_is_told_once_each_and_no_secret_with_it() {
        let on = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318");
        for (name, value, goes_on, said) in [
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", false, "4318"),
            (
                "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
                "http/protobuf",
                true,
                "http/json",
            ),
            ("OTEL_TRACES_EXPORTER", "zipkin", false, "zipkin"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "soon", true, "milliseconds"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "0", true, "milliseconds"),
            ("OTEL_TRACES_SAMPLER", "traceidratio", true, "traceidratio"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "a=1,secret", true, "number 2"),
            (
                "OTEL_EXPORTER_OTLP_HEADERS",
                "a=secret%0a",
                true,
                "number 1",
            ),
            ("OTEL_RESOURCE_ATTRIBUTES", "a=%ffsecret", true, "number 1"),
        ] {
            let (options, troubles) = options(&[on, (name, value)]);
            assert_eq!(options.is_some(), goes_on, "{name}={value}");
            assert_eq!(troubles.len(), 1, "{name}={value}");
            assert!(troubles[0].contains(said), "{troubles:?}");
            assert!(!troubles[0].contains("secret"), "{troubles:?}");
            assert!(!format!("{options:?}").contains("secret"));
        }
    }

    #[test]
    fn names_headers_and_limits_are_the_environment_s() {
        let (options, troubles) = options(&[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "api-key=a%20b, x-scope=1"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "250"),
            ("OTEL_SERVICE_NAME", "mine"),
            (
                "OTEL_RESOURCE_ATTRIBUTES",
                "service.name=other,zone=b,host.name=h",
            ),
            ("OTEL_TRACES_SAMPLER", "parentbased_always_off"),
        ]);
        assert_eq!(troubles, [""; 0]);
        let options = options.unwrap();
        let headers: Vec<_> = options
            .headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.to_str().unwrap()))
            .collect();
        assert_eq!(headers, [("api-key", "a b"), ("x-scope", "1")]);
        assert_eq!(options.timeout, Duration::from_millis(250));
        let sampler = Sampler {
            by_parent: true,
            others: false,
        };
        assert_eq!(options.sampler, sampler);
        let of = |key: &str| {
            let mut found = options.resource.iter().filter(|(own, _)| own == key);
            (found.next().map(|(_, value)| value.as_str()), found.count())
        };
        assert_eq!(of("service.name"), (Some("mine"), 0));
        assert_eq!(of("host.name"), (Some("h"), 0));
        assert_eq!(of("k8s.node.name"), (Some("node-1"), 0));
        assert_eq!(of("zone"), (Some("b"), 0));
    }
}
