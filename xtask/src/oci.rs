//! Container images as OCI archives with one layer of given entries.
//!
//! The same entries make the same bytes: the order is the caller's, times are zero, owners are root. See the OCI image
//! specification, "Image Layout" and "Image Configuration".

mod archive;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

pub use archive::Entry;
use archive::Layout;

/// A packed image.
#[derive(Debug)]
pub struct Image {
    /// The archive, for `ctr images import` and `skopeo copy oci-archive:`.
    pub archive: Vec<u8>,
    /// The layer's size in bytes, compressed.
    pub layer: usize,
    /// The layer's size in bytes, unpacked.
    pub unpacked: usize,
    /// The digest of the manifest, as in `image@sha256:...`.
    pub digest: String,
}

/// Packs `entries` as the image `name` (`NAME:TAG`). `config` is the image's `config` object:
/// entry point, environment, labels.
///
/// # Errors
/// If the name has no tag, or a path cannot be packed.
pub fn image(entries: &[Entry], config: &Value, name: &str) -> Result<Image> {
    let (_, tag) = name
        .rsplit_once(':')
        .with_context(|| format!("{name} has no tag: NAME:TAG"))?;
    let layer = archive::tar(entries)?;
    let compressed = archive::gzip(&layer)?;
    let mut layout = Layout::default();
    let layer_descriptor = layout.blob(
        "application/vnd.oci.image.layer.v1.tar+gzip",
        compressed.clone(),
    );
    let config = json!({
        "architecture": architecture(),
        "os": "linux",
        "created": "1970-01-01T00:00:00Z",
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [archive::digest(&layer)]},
    });
    let config = layout.json("application/vnd.oci.image.config.v1+json", &config)?;
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config,
        "layers": [layer_descriptor],
    });
    let mut manifest = layout.json("application/vnd.oci.image.manifest.v1+json", &manifest)?;
    let digest = manifest["digest"].as_str().unwrap_or_default().to_owned();
    manifest["annotations"] = json!({
        "org.opencontainers.image.ref.name": tag,
        // containerd and CRI-O read the whole name from it.
        "io.containerd.image.name": name,
    });
    manifest["platform"] = json!({"architecture": architecture(), "os": "linux"});
    Ok(Image {
        archive: layout.finish(&manifest)?,
        layer: compressed.len(),
        unpacked: layer.len(),
        digest,
    })
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
    use super::*;

    #[test]
    fn the_same_programs_give_the_same_image_and_others_another() {
        let of = |bytes: &[u8]| {
            let entries = [
                Entry::directory("usr"),
                Entry::program("usr/p".to_owned(), bytes.to_vec()),
            ];
            image(&entries, &json!({}), "name:tag").expect("an image")
        };
        let (first, again, other) = (of(b"one"), of(b"one"), of(b"two"));
        assert_eq!(first.archive, again.archive);
        assert_eq!(first.digest, again.digest);
        assert_ne!(first.digest, other.digest);
    }

    #[test]
    fn an_image_without_a_tag_is_refused() {
        assert!(image(&[], &json!({}), "name").is_err());
    }
}
