//! Opaque data that an owner stores with its addresses.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::DeserializeOwned, ser};
use serde_json::Value;

/// A JSON value, kept as text. A thousand records cost a thousand texts, and only the owner of a record parses it.
#[derive(Clone, PartialEq, Eq)]
pub struct Record(Arc<str>);

impl Record {
    /// Serializes the value into a record.
    ///
    /// # Errors
    /// If the value cannot be serialized as JSON.
    pub fn of<T: Serialize>(value: &T) -> serde_json::Result<Self> {
        Ok(Self(serde_json::to_string(value)?.into()))
    }

    /// Deserializes the value.
    ///
    /// # Errors
    /// If the record is not of this type.
    pub fn parse<T: DeserializeOwned>(&self) -> serde_json::Result<T> {
        serde_json::from_str(&self.0)
    }

    /// Returns the text, JSON in one line.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub(super) fn from_text(text: &str) -> Self {
        Self(text.into())
    }
}

impl From<Value> for Record {
    fn from(value: Value) -> Self {
        Self(value.to_string().into())
    }
}

impl Default for Record {
    fn default() -> Self {
        Value::Null.into()
    }
}

impl PartialEq<Value> for Record {
    fn eq(&self, other: &Value) -> bool {
        self.parse::<Value>().is_ok_and(|value| value == *other)
    }
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for Record {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let value: Value = self.parse().map_err(ser::Error::custom)?;
        value.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Record {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Value::deserialize(deserializer).map(Self::from)
    }
}
