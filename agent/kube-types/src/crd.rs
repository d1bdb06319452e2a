//! CustomResourceDefinitions, as kube's derive makes them and `cargo xtask crds` writes them.

#![expect(
    missing_docs,
    reason = "the fields are Kubernetes': its API reference says what each is"
)]

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    meta::ObjectMeta,
    object::{resource, wire, writes},
};

resource!(
    CustomResourceDefinition: "apiextensions.k8s.io" / "v1", "customresourcedefinitions", ClusterResourceScope
);
writes!(CustomResourceDefinition);

wire! {
    /// What objects of a kind are like. Made here and written into a file, never read.
    #[derive(Debug, Clone, Default, PartialEq, Serialize)]
    #[serde(remote = "Self")]
    pub struct CustomResourceDefinition {
        metadata: ObjectMeta,
        spec: CustomResourceDefinitionSpec,
        status: Option<CustomResourceDefinitionStatus>,
    }

    /// A kind: its names and versions.
    #[derive(Debug, Clone, Default, PartialEq, Serialize)]
    pub struct CustomResourceDefinitionSpec {
        group: String,
        names: CustomResourceDefinitionNames,
        preserve_unknown_fields: Option<bool>,
        scope: String,
        versions: Vec<CustomResourceDefinitionVersion>,
    }

    /// How a kind is called.
    #[derive(Debug, Clone, Default, PartialEq, Serialize)]
    pub struct CustomResourceDefinitionNames {
        categories: Option<Vec<String>>,
        kind: String,
        list_kind: Option<String>,
        plural: String,
        short_names: Option<Vec<String>>,
        singular: Option<String>,
    }

    /// One version of a kind.
    #[derive(Debug, Clone, Default, PartialEq, Serialize)]
    pub struct CustomResourceDefinitionVersion {
        additional_printer_columns: Option<Vec<CustomResourceColumnDefinition>>,
        deprecated: Option<bool>,
        deprecation_warning: Option<String>,
        name: String,
        schema: Option<CustomResourceValidation>,
        selectable_fields: Option<Vec<SelectableField>>,
        served: bool,
        storage: bool,
        subresources: Option<CustomResourceSubresources>,
    }

    /// What `kubectl get` shows of an object.
    #[derive(Debug, Clone, Default, PartialEq, Serialize)]
    pub struct CustomResourceColumnDefinition {
        description: Option<String>,
        format: Option<String>,
        json_path: String,
        name: String,
        priority: Option<i32>,
        #[serde(rename = "type")]
        type_: String,
    }

    /// What an object has to be like.
    #[derive(Debug, Clone, Default, PartialEq, Serialize)]
    pub struct CustomResourceValidation {
        #[serde(rename = "openAPIV3Schema")]
        open_api_v3_schema: Option<JSONSchemaProps>,
    }

    /// What objects can be looked for by.
    #[derive(Debug, Clone, Default, PartialEq, Serialize)]
    pub struct SelectableField {
        json_path: String,
    }

    /// The parts of an object that have their own URL.
    #[derive(Debug, Clone, Default, PartialEq, Serialize)]
    pub struct CustomResourceSubresources {
        scale: Option<CustomResourceSubresourceScale>,
        status: Option<CustomResourceSubresourceStatus>,
    }

    /// Where an object says how many of something there are.
    #[derive(Debug, Clone, Default, PartialEq, Serialize)]
    pub struct CustomResourceSubresourceScale {
        label_selector_path: Option<String>,
        spec_replicas_path: String,
        status_replicas_path: String,
    }

    /// What the API server made of a definition.
    #[derive(Debug, Clone, Default, PartialEq, Serialize)]
    pub struct CustomResourceDefinitionStatus {
        conditions: Option<Vec<CustomResourceDefinitionCondition>>,
    }

    /// What is the case with a definition.
    #[derive(Debug, Clone, Default, PartialEq, Serialize)]
    pub struct CustomResourceDefinitionCondition {
        status: String,
        #[serde(rename = "type")]
        type_: String,
    }

    /// What a value has to be like: the keywords that our types make. Another one is refused, when it is
    /// made, instead of being left out of the definition.
    #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    pub struct JSONSchemaProps {
        additional_properties: Option<Box<JSONSchemaProps>>,
        default: Option<Value>,
        description: Option<String>,
        #[serde(rename = "enum")]
        enum_: Option<Vec<Value>>,
        format: Option<String>,
        items: Option<Box<JSONSchemaProps>>,
        max_items: Option<i64>,
        max_length: Option<i64>,
        maximum: Option<f64>,
        min_items: Option<i64>,
        min_length: Option<i64>,
        min_properties: Option<i64>,
        minimum: Option<f64>,
        nullable: Option<bool>,
        pattern: Option<String>,
        properties: Option<BTreeMap<String, JSONSchemaProps>>,
        required: Option<Vec<String>>,
        title: Option<String>,
        #[serde(rename = "type")]
        type_: Option<String>,
        #[serde(rename = "x-kubernetes-preserve-unknown-fields")]
        x_kubernetes_preserve_unknown_fields: Option<bool>,
        #[serde(rename = "x-kubernetes-validations")]
        x_kubernetes_validations: Option<Vec<Value>>,
    }
}

/// An object's status has its own URL.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct CustomResourceSubresourceStatus(pub Value);
