//! What kube asks of a whole object: how the API server calls its kind, and its two first fields.

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{Error as _, Unexpected},
};

/// How the API server calls a kind.
pub trait Resource {
    /// The object's `apiVersion`: `v1` for the group without a name, else `group/version`.
    const API_VERSION: &'static str;
    /// Empty for the group without a name.
    const GROUP: &'static str;
    /// The object's `kind`.
    const KIND: &'static str;
    /// As in `v1`.
    const VERSION: &'static str;
    /// The kind in a URL: its plural, in lower case.
    const URL_PATH_SEGMENT: &'static str;
    /// Whether such an object belongs to a namespace.
    type Scope: ResourceScope;
}

/// Whether objects of a kind belong to a namespace.
pub trait ResourceScope {}

/// The cluster's objects.
#[derive(Debug)]
pub struct ClusterResourceScope {}
impl ResourceScope for ClusterResourceScope {}

/// A namespace's objects.
#[derive(Debug)]
pub struct NamespaceResourceScope {}
impl ResourceScope for NamespaceResourceScope {}

/// Parts of other objects.
#[derive(Debug)]
pub struct SubResourceScope {}
impl ResourceScope for SubResourceScope {}

/// A kind whose objects have metadata: every kind here has.
pub trait Metadata: Resource {
    /// Their type.
    type Ty;

    /// The object's.
    fn metadata(&self) -> &Self::Ty;

    /// The object's.
    fn metadata_mut(&mut self) -> &mut Self::Ty;
}

/// An object as derived by serde, without `apiVersion` and `kind`.
pub(crate) trait Fields: Resource + Sized {
    fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error>;
}

/// As [`Fields`], for what may be written.
pub(crate) trait WrittenFields: Resource {
    fn write<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error>;
}

/// An object with its two first fields.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Typed<N, T> {
    api_version: Option<N>,
    kind: Option<N>,
    #[serde(flatten)]
    object: T,
}

struct Read<T>(T);

impl<'de, T: Fields> Deserialize<'de> for Read<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        T::read(deserializer).map(Self)
    }
}

struct Written<'a, T>(&'a T);

impl<T: WrittenFields> Serialize for Written<'_, T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.write(serializer)
    }
}

/// Reads an object, refusing another kind's. Objects in a list do not say what they are.
pub(crate) fn read<'de, T: Fields, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    let typed = Typed::<String, Read<T>>::deserialize(deserializer)?;
    for (said, known) in [(typed.api_version, T::API_VERSION), (typed.kind, T::KIND)] {
        if let Some(said) = said.filter(|said| said != known) {
            return Err(D::Error::invalid_value(Unexpected::Str(&said), &known));
        }
    }
    Ok(typed.object.0)
}

/// Writes an object with what it is.
pub(crate) fn write<T: WrittenFields, S: Serializer>(
    object: &T,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let typed = Typed {
        api_version: Some(T::API_VERSION),
        kind: Some(T::KIND),
        object: Written(object),
    };
    typed.serialize(serializer)
}

/// What is said, or the empty value where nothing or `null` is, as Go writes an empty list.
pub(crate) fn or_default<'de, T, D>(deserializer: D) -> Result<T, D::Error>
where
    T: Default + Deserialize<'de>,
    D: Deserializer<'de>,
{
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// Declares types as the API writes them: names in camel case, what is `None` left out, and what is
/// missing or `null` the empty value. What has no field is ignored, or in `rest` if there is one.
macro_rules! wire {
    ($($(#[$meta:meta])* pub struct $name:ident { $($fields:tt)* })*) => {$(
        wire!(@ [$(#[$meta])* #[serde(rename_all = "camelCase")] pub struct $name] [] $($fields)*);
    )*};
    (@ [$($head:tt)*] [$($done:tt)*]) => {
        $($head)* { $($done)* }
    };
    (@ $head:tt [$($done:tt)*] rest: Rest, $($more:tt)*) => {
        wire!(@ $head [
            $($done)*
            /// All that has no field of its own.
            #[serde(flatten)]
            pub rest: $crate::Rest,
        ] $($more)*);
    };
    (@ $head:tt [$($done:tt)*] $(#[$meta:meta])* $field:ident: Option<$type:ty>, $($more:tt)*) => {
        wire!(@ $head [
            $($done)*
            $(#[$meta])*
            #[serde(skip_serializing_if = "Option::is_none")]
            pub $field: Option<$type>,
        ] $($more)*);
    };
    (@ $head:tt [$($done:tt)*] $(#[$meta:meta])* $field:ident: $type:ty, $($more:tt)*) => {
        wire!(@ $head [
            $($done)*
            $(#[$meta])*
            #[serde(default, deserialize_with = "crate::object::or_default")]
            pub $field: $type,
        ] $($more)*);
    };
}

/// Makes a type with a field `metadata` a kind: `Type: ["group" /] "version", "plural", scope`.
macro_rules! resource {
    ($type:ident: $version:literal, $plural:literal, $scope:ident) => {
        resource!(@ $type: $version, "", $version, $plural, $scope);
    };
    ($type:ident: $group:literal / $version:literal, $plural:literal, $scope:ident) => {
        resource!(@ $type: concat!($group, "/", $version), $group, $version, $plural, $scope);
    };
    (@ $type:ident: $api_version:expr, $group:literal, $version:literal, $plural:literal, $scope:ident) => {
        impl $crate::Resource for $type {
            const API_VERSION: &'static str = $api_version;
            const GROUP: &'static str = $group;
            const KIND: &'static str = stringify!($type);
            const VERSION: &'static str = $version;
            const URL_PATH_SEGMENT: &'static str = $plural;
            type Scope = $crate::$scope;
        }

        impl $crate::Metadata for $type {
            type Ty = $crate::meta::ObjectMeta;

            fn metadata(&self) -> &Self::Ty {
                &self.metadata
            }

            fn metadata_mut(&mut self) -> &mut Self::Ty {
                &mut self.metadata
            }
        }
    };
}

/// Lets kinds be read. Each derives `Deserialize` with `#[serde(remote = "Self")]`.
macro_rules! reads {
    ($($type:ident),*) => {$(
        impl $crate::object::Fields for $type {
            fn read<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                // The derived function, which goes before the trait's of that name.
                Self::deserialize(deserializer)
            }
        }

        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                $crate::object::read(deserializer)
            }
        }
    )*};
}

/// Lets kinds be written. Each derives `Serialize` with `#[serde(remote = "Self")]`.
macro_rules! writes {
    ($($type:ident),*) => {$(
        impl $crate::object::WrittenFields for $type {
            fn write<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                // The derived function, which goes before the trait's of that name.
                Self::serialize(self, serializer)
            }
        }

        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                $crate::object::write(self, serializer)
            }
        }
    )*};
}

pub(crate) use {reads, resource, wire, writes};
