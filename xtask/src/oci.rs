//! Container images as OCI archives: for each architecture one layer of given entries.
//!
//! The same entries make the same bytes: the order is the caller's, times are zero, owners are root. See the OCI image
//! specification, "Image Layout", "Image Index" and "Image Configuration".

mod archive;

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

pub use archive::Entry;
use archive::Layout;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// An image to pack.
#[derive(Debug, Default)]
pub struct Source<'s> {
    /// Name and tag, `NAME:TAG`.
    pub name: &'s str,
    /// The entries of the layer for each architecture, as images name it (`amd64`).
    pub layers: Vec<(&'s str, Vec<Entry>)>,
    /// The image's `config` object: entry point, environment, labels.
    pub config: Value,
    /// The annotations of manifests and index.
    pub annotations: BTreeMap<String, String>,
    /// When it was made (RFC 3339); the beginning of 1970 without.
    pub created: Option<String>,
}

/// A packed image.
#[derive(Debug)]
pub struct Image {
    /// The archive, for `ctr images import` and `skopeo copy oci-archive:`.
    pub archive: Vec<u8>,
    /// The layers, in the order of the source.
    pub layers: Vec<Layer>,
    /// The digest of the index, or of the manifest if there is one architecture, as in `image@sha256:...`.
    pub digest: String,
}

/// A packed layer.
#[derive(Debug)]
pub struct Layer {
    /// Its size in bytes, compressed.
    pub compressed: usize,
    /// Its size in bytes, unpacked.
    pub unpacked: usize,
}

/// Packs `entries` as the image `name` (`NAME:TAG`) for this machine's architecture. `config` is the image's `config`
/// object: entry point, environment, labels.
///
/// # Errors
/// If the name has no tag, or a path cannot be packed.
pub fn image(entries: Vec<Entry>, config: Value, name: &str) -> Result<Image> {
    pack(&Source {
        name,
        layers: vec![(architecture(), entries)],
        config,
        ..Source::default()
    })
}

/// Packs an image. With one architecture it is a manifest, otherwise an index of manifests.
///
/// # Errors
/// If the name has no tag, there is no layer, or a path cannot be packed.
pub fn pack(source: &Source<'_>) -> Result<Image> {
    let name = source.name;
    let (_, tag) = name
        .rsplit_once(':')
        .with_context(|| format!("{name} has no tag: NAME:TAG"))?;
    let mut layout = Layout::default();
    let (mut layers, mut manifests) = (Vec::new(), Vec::new());
    for (architecture, entries) in &source.layers {
        let (layer, manifest) = manifest(&mut layout, source, architecture, entries)?;
        layers.push(layer);
        manifests.push(manifest);
    }
    let mut top = if manifests.len() > 1 {
        let index = annotated(
            json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests}),
            source,
        );
        layout.json(INDEX, &index)?
    } else {
        manifests.pop().context("an image has a layer")?
    };
    let digest = top["digest"].as_str().unwrap_or_default().to_owned();
    top["annotations"] = json!({
        "org.opencontainers.image.ref.name": tag,
        // containerd and CRI-O read the whole name from it.
        "io.containerd.image.name": name,
    });
    Ok(Image {
        archive: layout.finish(&top)?,
        layers,
        digest,
    })
}

/// Adds the image for one architecture, and returns its layer and the descriptor of its manifest.
fn manifest(
    layout: &mut Layout,
    source: &Source<'_>,
    architecture: &str,
    entries: &[Entry],
) -> Result<(Layer, Value)> {
    let tar = archive::tar(entries)?;
    let compressed = archive::gzip(&tar)?;
    let layer = Layer {
        compressed: compressed.len(),
        unpacked: tar.len(),
    };
    let descriptor = layout.blob("application/vnd.oci.image.layer.v1.tar+gzip", compressed);
    let config = json!({
        "architecture": architecture,
        "os": "linux",
        "created": source.created.as_deref().unwrap_or("1970-01-01T00:00:00Z"),
        "config": source.config,
        "rootfs": {"type": "layers", "diff_ids": [archive::digest(&tar)]},
    });
    let config = layout.json("application/vnd.oci.image.config.v1+json", &config)?;
    let manifest = annotated(
        json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [descriptor]}),
        source,
    );
    let mut manifest = layout.json(MANIFEST, &manifest)?;
    manifest["platform"] = json!({"architecture": architecture, "os": "linux"});
    Ok((layer, manifest))
}

/// Adds the source's annotations, if it has any.
fn annotated(mut object: Value, source: &Source<'_>) -> Value {
    if !source.annotations.is_empty() {
        object["annotations"] = json!(source.annotations);
    }
    object
}

/// Returns this machine's architecture, as images name it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    fn entries(bytes: &[u8]) -> Vec<Entry> {
        vec![
            Entry::directory("usr"),
            Entry::program("usr/p".to_owned(), bytes.to_vec()),
            Entry::file("usr/text".to_owned(), b"text".to_vec()),
        ]
    }

    fn of(architectures: &[(&'static str, &[u8])]) -> Image {
        let layers = architectures
            .iter()
            .map(|(name, bytes)| (*name, entries(bytes)));
        pack(&Source {
            name: "name:tag",
            layers: layers.collect(),
            config: json!({"Labels": {"a": "b"}}),
            annotations: BTreeMap::from([("a".to_owned(), "b".to_owned())]),
            created: Some("2000-01-01T00:00:00Z".to_owned()),
        })
        .expect("an image")
    }

    /// Reads a file of an archive as JSON.
    fn json_of(archive: &[u8], path: &str) -> Value {
        let mut tar = tar::Archive::new(archive);
        let found = tar
            .entries()
            .expect("entries")
            .map(|entry| entry.expect("an entry"))
            .find(|entry| entry.path().expect("a path").to_string_lossy() == path);
        let mut bytes = Vec::new();
        let mut found = found.unwrap_or_else(|| panic!("{path} is not in the archive"));
        found.read_to_end(&mut bytes).expect("its bytes");
        serde_json::from_slice(&bytes).expect("JSON")
    }

    fn blob(archive: &[u8], descriptor: &Value) -> Value {
        let digest = descriptor["digest"].as_str().expect("a digest");
        json_of(archive, &format!("blobs/{}", digest.replace(':', "/")))
    }

    #[test]
    fn the_same_programs_give_the_same_image_and_others_another() {
        for more in [None, Some(("arm64", b"arm".as_slice()))] {
            let of = |bytes: &'static [u8]| {
                let all: Vec<_> = std::iter::once(("amd64", bytes)).chain(more).collect();
                of(&all)
            };
            let (first, again, other) = (of(b"one"), of(b"one"), of(b"two"));
            assert_eq!(first.archive, again.archive);
            assert_eq!(first.digest, again.digest);
            assert_ne!(first.digest, other.digest);
        }
    }

    #[test]
    fn one_architecture_is_a_manifest_by_the_image_s_name() {
        let image = of(&[("amd64", b"one")]);
        let top = &json_of(&image.archive, "index.json")["manifests"];
        assert_eq!(top.as_array().map(Vec::len), Some(1));
        assert_eq!(top[0]["mediaType"], MANIFEST);
        assert_eq!(top[0]["digest"], image.digest.as_str());
        assert_eq!(
            top[0]["annotations"]["io.containerd.image.name"],
            "name:tag"
        );
        assert_eq!(blob(&image.archive, &top[0])["annotations"]["a"], "b");
    }

    #[test]
    fn two_architectures_are_an_index_by_the_image_s_name() {
        let image = of(&[("amd64", b"one"), ("arm64", b"two")]);
        let top = &json_of(&image.archive, "index.json")["manifests"];
        assert_eq!(top.as_array().map(Vec::len), Some(1));
        assert_eq!(top[0]["mediaType"], INDEX);
        assert_eq!(top[0]["digest"], image.digest.as_str());
        assert_eq!(
            top[0]["annotations"]["io.containerd.image.name"],
            "name:tag"
        );
        let index = blob(&image.archive, &top[0]);
        assert_eq!(index["annotations"]["a"], "b");
        for (place, architecture) in ["amd64", "arm64"].into_iter().enumerate() {
            let descriptor = &index["manifests"][place];
            assert_eq!(descriptor["platform"]["architecture"], architecture);
            let manifest = blob(&image.archive, descriptor);
            let config = blob(&image.archive, &manifest["config"]);
            assert_eq!(config["architecture"], architecture);
            assert_eq!(config["created"], "2000-01-01T00:00:00Z");
            assert_eq!(config["config"]["Labels"]["a"], "b");
        }
    }

    #[test]
    fn an_image_without_a_tag_or_a_layer_is_refused() {
        assert!(image(Vec::new(), json!({}), "name").is_err());
        let source = Source {
            name: "name:tag",
            ..Source::default()
        };
        assert!(pack(&source).is_err());
    }
}
