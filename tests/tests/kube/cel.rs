//! Evaluates Ebbtide's CEL expressions without an API server, by the crate `cel`.
//! It is not the API server's implementation: Kubernetes' own functions are stand-ins here, and it does not tell the
//! cost of an expression.

use std::{collections::HashMap, net::IpAddr, sync::Arc};

use anyhow::{Context as _, Result};
use cel::{Env, ExecutionError, Value, extractors::This};
use ipnet::IpNet;
use serde_json::Value as Json;

type Answer = std::result::Result<Value, ExecutionError>;
type Text = Arc<String>;

/// Evaluates `expression` with these variables.
///
/// # Errors
/// If it cannot be compiled. A failed evaluation is an answer, not an error.
pub(crate) fn evaluate(expression: &str, variables: &[(&str, Value)]) -> Result<Answer> {
    let env = Arc::new(Env::stdlib());
    let program = env
        .compile(expression)
        .with_context(|| expression.to_owned())?;
    let mut context = cel::Context::with_env(env);
    functions(&mut context).map_err(|e| anyhow::anyhow!("{e:?}"))?;
    for (name, value) in variables {
        context.add_variable_from_value(*name, value.clone());
    }
    Ok(program.execute(&context))
}

/// Converts JSON as the API server does: whole numbers are `int`.
pub(crate) fn value(json: &Json) -> Value {
    match json {
        Json::Null => Value::Null,
        Json::Bool(flag) => Value::Bool(*flag),
        Json::Number(number) => number.as_i64().map_or_else(
            || Value::Float(number.as_f64().unwrap_or_default()),
            Value::Int,
        ),
        Json::String(text) => text.as_str().into(),
        Json::Array(items) => Value::List(Arc::new(items.iter().map(value).collect())),
        Json::Object(fields) => map(fields
            .iter()
            .map(|(name, field)| (name.as_str(), value(field)))),
    }
}

/// Returns a map with these fields.
pub(crate) fn map<'a>(fields: impl IntoIterator<Item = (&'a str, Value)>) -> Value {
    let fields = fields.into_iter();
    let fields: HashMap<String, Value> = fields
        .map(|(name, value)| (name.to_owned(), value))
        .collect();
    fields.into()
}

/// Parses an address as Kubernetes does: without zones, and without IPv4 in IPv6
/// (k8s.io/apiserver/pkg/cel/library/ip.go).
fn address(text: &str) -> Option<IpAddr> {
    let address: IpAddr = text.parse().ok()?;
    match address {
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => None,
        _ => Some(address),
    }
}

fn prefix(text: &str) -> Option<IpNet> {
    let (front, _) = text.split_once('/')?;
    address(front)?;
    text.parse().ok()
}

fn wrong<T>(value: Option<T>, text: &str) -> std::result::Result<T, ExecutionError> {
    value.ok_or_else(|| ExecutionError::function_error("ip or cidr", format!("{text} is none")))
}

/// Adds Kubernetes' functions, which represent addresses and prefixes as texts.
fn functions(context: &mut cel::Context<'_, '_>) -> std::result::Result<(), impl std::fmt::Debug> {
    context.add_function("isIP", |text: Text| address(&text).is_some())?;
    context.add_function("isCIDR", |text: Text| prefix(&text).is_some())?;
    context.add_function("cidr", |text: Text| -> Answer {
        Ok(wrong(prefix(&text), &text)?.to_string().into())
    })?;
    // The address of a text, or of a prefix.
    let ip = |text: &str| address(text).or_else(|| prefix(text).map(|net| net.addr()));
    context.add_function("ip", move |This(text): This<Text>| -> Answer {
        Ok(wrong(ip(&text), &text)?.to_string().into())
    })?;
    context.add_function("masked", |This(text): This<Text>| -> Answer {
        Ok(wrong(prefix(&text), &text)?.trunc().to_string().into())
    })?;
    context.add_function("prefixLength", |This(text): This<Text>| -> Answer {
        Ok(Value::Int(wrong(prefix(&text), &text)?.prefix_len().into()))
    })?;
    context.add_function(
        "containsIP",
        |This(text): This<Text>, other: Text| -> Answer {
            let (net, ip) = (
                wrong(prefix(&text), &text)?,
                wrong(address(&other), &other)?,
            );
            Ok(Value::Bool(net.contains(&ip)))
        },
    )?;
    context.add_function(
        "containsCIDR",
        |This(text): This<Text>, other: Text| -> Answer {
            let (net, inner) = (wrong(prefix(&text), &text)?, wrong(prefix(&other), &other)?);
            Ok(Value::Bool(net.contains(&inner)))
        },
    )?;
    // As in Go's net/netip.
    context.add_function("isGlobalUnicast", |This(text): This<Text>| -> Answer {
        Ok(Value::Bool(match wrong(address(&text), &text)? {
            IpAddr::V4(v4) => {
                !v4.is_unspecified()
                    && !v4.is_loopback()
                    && !v4.is_multicast()
                    && !v4.is_link_local()
                    && !v4.is_broadcast()
            }
            IpAddr::V6(v6) => {
                !v6.is_unspecified()
                    && !v6.is_loopback()
                    && !v6.is_multicast()
                    && !v6.is_unicast_link_local()
            }
        }))
    })?;
    context.add_function("isLinkLocalUnicast", |This(text): This<Text>| -> Answer {
        Ok(Value::Bool(match wrong(address(&text), &text)? {
            IpAddr::V4(v4) => v4.is_link_local(),
            IpAddr::V6(v6) => v6.is_unicast_link_local(),
        }))
    })?;
    context.add_function("split", |This(text): This<Text>, by: Text| -> Answer {
        let parts = text.split(by.as_str()).map(Value::from);
        Ok(Value::List(Arc::new(parts.collect())))
    })?;
    context.add_function("trim", |This(text): This<Text>| -> Answer {
        Ok(text.trim().into())
    })?;
    context.add_function("lowerAscii", |This(text): This<Text>| -> Answer {
        Ok(text.to_ascii_lowercase().into())
    })
}
