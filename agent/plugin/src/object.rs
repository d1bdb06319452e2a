//! Deserializers that accept JSON objects only. What serde derives for a struct also accepts an
//! array, each item as the next field.
//!
//! For `deserialize_with`, by the number of objects.

use std::{fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor, value::MapAccessDeserializer},
};

/// A value that is serialized as an object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Object<T>(pub T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Fields<T> {
            type Value = T;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, fields: A) -> Result<T, A::Error> {
                T::deserialize(MapAccessDeserializer::new(fields))
            }
        }
        deserializer.deserialize_map(Fields(PhantomData)).map(Self)
    }
}

/// Deserializes an optional object.
///
/// # Errors
/// If it is not an object, or a field is invalid.
pub fn optional<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    let read = Option::<Object<T>>::deserialize(deserializer)?;
    Ok(read.map(|Object(value)| value))
}

/// Deserializes an array of objects.
///
/// # Errors
/// As [`optional`]'s.
pub fn list<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    let read = Vec::<Object<T>>::deserialize(deserializer)?;
    Ok(read.into_iter().map(|Object(value)| value).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Deserialize)]
    struct Pair {
        a: u8,
        #[serde(default)]
        b: u8,
    }

    #[derive(Debug, Deserialize)]
    struct Outer {
        #[serde(default, deserialize_with = "optional")]
        one: Option<Pair>,
        #[serde(default, deserialize_with = "list")]
        many: Vec<Pair>,
    }

    #[test]
    fn a_struct_is_read_from_an_object_alone() {
        for (text, is_read) in [
            ("{}", true),
            (r#"{"one":null}"#, true),
            (r#"{"one":{"a":1},"many":[{"a":1,"b":2}]}"#, true),
            ("[]", false),
            (r#"[[1,2],[]]"#, false),
            (r#"{"one":[1,2]}"#, false),
            (r#"{"many":[[1,2]]}"#, false),
            (r#"{"many":[null]}"#, false),
            (r#"{"many":{"a":1}}"#, false),
        ] {
            let read = serde_json::from_str::<Object<Outer>>(text);
            assert_eq!(read.is_ok(), is_read, "{text}: {read:?}");
            if let Err(e) = read {
                let said = e.to_string();
                assert!(
                    said.contains("object") || said.contains("sequence"),
                    "{said}"
                );
            }
        }
        let Object(outer) = serde_json::from_str::<Object<Outer>>(r#"{"one":{"a":1}}"#).unwrap();
        assert_eq!(outer.one, Some(Pair { a: 1, b: 0 }));
        assert!(outer.many.is_empty());
    }
}
