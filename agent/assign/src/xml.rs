//! Reading answers of AWS' query protocol. Document types are refused, and elements are found by name at any namespace.

use roxmltree::{Document, Node};

/// An answer that is not what it should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadAnswer {
    /// It is no XML.
    #[error("is no XML: {0}")]
    NoXml(String),
    /// Something is missing.
    #[error("has no {0}")]
    Missing(&'static str),
    /// A value cannot be read.
    #[error("has '{value}' as {name}")]
    Value {
        /// The element.
        name: &'static str,
        /// What it says.
        value: String,
    },
}

/// Parses a document.
pub(crate) fn parse(text: &str) -> Result<Document<'_>, BadAnswer> {
    Document::parse(text).map_err(|e| BadAnswer::NoXml(e.to_string()))
}

/// Returns the first child of this name.
pub(crate) fn child<'a>(node: Node<'a, 'a>, name: &str) -> Option<Node<'a, 'a>> {
    node.children()
        .find(|child| child.has_tag_name(name) || is(*child, name))
}

fn is(node: Node<'_, '_>, name: &str) -> bool {
    node.is_element() && node.tag_name().name() == name
}

/// Returns the first element of this name, at any depth.
pub(crate) fn find<'a>(node: Node<'a, 'a>, name: &str) -> Option<Node<'a, 'a>> {
    node.descendants().find(|each| is(*each, name))
}

/// Returns what a child says; empty is nothing.
pub(crate) fn text<'a>(node: Node<'a, 'a>, name: &str) -> Option<&'a str> {
    let text = child(node, name)?.text()?.trim();
    (!text.is_empty()).then_some(text)
}

/// Returns the `item`s of a child; none if there is no such child.
pub(crate) fn items<'a>(node: Node<'a, 'a>, name: &str) -> impl Iterator<Item = Node<'a, 'a>> {
    let list = child(node, name);
    list.into_iter()
        .flat_map(|list| list.children().filter(|each| is(*each, "item")))
}

/// Parses what an element says.
pub(crate) fn value<T: std::str::FromStr>(text: &str, name: &'static str) -> Result<T, BadAnswer> {
    let value = || BadAnswer::Value {
        name,
        value: text.chars().take(80).collect(),
    };
    text.trim().parse().map_err(|_| value())
}
