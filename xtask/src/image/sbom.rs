//! What is linked into a program, as CycloneDX 1.6 (ECMA-424): crates with their licences and checksums, the standard
//! library, the C library, and the crates of the kernel's programs inside the agent.
//!
//! The crates are those of `cargo tree`, for the program's package, features and target: what is only for build scripts,
//! for procedural macros or for tests is in no program. The document has no random numbers and no times.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

/// The media type of the document.
pub(super) const SUFFIX: &str = "cdx.json";

/// How `cargo tree` prints a crate: [`Tree::parse`] reads it.
pub(super) const TREE_OPTIONS: [&str; 6] = [
    "--edges",
    "normal,no-proc-macro",
    "--prefix",
    "depth",
    "--format",
    "{p}|{l}",
];

/// A crate, by name and version.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Crate {
    name: String,
    version: String,
}

impl Crate {
    fn id(&self) -> String {
        format!("{}@{}", self.name, self.version)
    }
}

/// The crates of a program, and what each one uses.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Tree {
    root: Option<Crate>,
    licences: BTreeMap<Crate, String>,
    /// The crates of this repository. Some have the names of published ones in whose place they are.
    ours: BTreeSet<Crate>,
    uses: BTreeMap<Crate, BTreeSet<Crate>>,
}

impl Tree {
    /// Parses what `cargo tree` prints with [`TREE_OPTIONS`]: `1serde v1.0.229|MIT OR Apache-2.0`, with the depth in
    /// front.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let mut tree = Self::default();
        let mut above: Vec<Crate> = Vec::new();
        for line in text.lines().filter(|line| !line.is_empty()) {
            let digits = line.bytes().take_while(u8::is_ascii_digit).count();
            let (depth, rest) = line.split_at(digits);
            let wrong = || format!("`{line}` is not what `cargo tree` prints of a crate");
            let depth: usize = depth.parse().with_context(wrong)?;
            let (package, licence) = rest.split_once('|').with_context(wrong)?;
            let mut words = package.split_whitespace();
            let (name, version) = (
                words.next().with_context(wrong)?,
                words
                    .next()
                    .and_then(|word| word.strip_prefix('v'))
                    .with_context(wrong)?,
            );
            let one = Crate {
                name: name.to_owned(),
                version: version.to_owned(),
            };
            if words.next().is_some_and(|place| place.starts_with("(/")) {
                tree.ours.insert(one.clone());
            }
            // A crate whose own crates were shown before ends with an asterisk.
            let licence = licence.trim_end_matches("(*)").trim();
            tree.licences.insert(one.clone(), licence.to_owned());
            tree.uses.entry(one.clone()).or_default();
            above.truncate(depth);
            match above.last() {
                Some(user) => {
                    tree.uses
                        .entry(user.clone())
                        .or_default()
                        .insert(one.clone());
                }
                None => tree.root = Some(one.clone()),
            }
            above.push(one);
        }
        Ok(tree)
    }

    /// Adds the crates of another tree, whose root this tree's root contains.
    pub(super) fn embed(&mut self, other: Self) {
        if let (Some(root), Some(inside)) = (&self.root, other.root) {
            self.uses.entry(root.clone()).or_default().insert(inside);
        }
        self.licences.extend(other.licences);
        self.ours.extend(other.ours);
        for (one, used) in other.uses {
            self.uses.entry(one).or_default().extend(used);
        }
    }
}

/// What is linked and is no crate.
#[derive(Debug)]
pub(super) struct Library {
    pub(super) name: &'static str,
    pub(super) version: String,
    /// An SPDX expression.
    pub(super) licence: &'static str,
    /// Its package URL.
    pub(super) purl: String,
}

/// Returns a package URL. In a version a plus has to be encoded (the specification of package URLs, "Character encoding").
pub(super) fn purl(kind: &str, name: &str, version: &str) -> String {
    format!("pkg:{kind}/{name}@{}", version.replace('+', "%2B"))
}

/// Reads the checksums of crates from `Cargo.lock`, by `name@version`.
pub(super) fn checksums(lock: &str) -> BTreeMap<String, String> {
    let field = |package: &str, name: &str| {
        let start = format!("{name} = \"");
        let mut lines = package.lines();
        lines.find_map(|line| Some(line.strip_prefix(&start)?.trim_end_matches('"').to_owned()))
    };
    lock.split("[[package]]")
        .filter_map(|package| {
            let (name, version) = (field(package, "name")?, field(package, "version")?);
            Some((format!("{name}@{version}"), field(package, "checksum")?))
        })
        .collect()
}

/// Returns the document about `program`.
pub(super) fn document(
    program: &str,
    version: &str,
    tree: &Tree,
    checksums: &BTreeMap<String, String>,
    libraries: &[Library],
) -> Value {
    let crates = tree.licences.iter().map(|(one, licence)| {
        let id = one.id();
        let mut component = json!({
            "type": "library",
            "bom-ref": id,
            "name": one.name,
            "version": one.version,
            "scope": "required",
        });
        if let Some(licences) = expression(licence) {
            component["licenses"] = licences;
        }
        // A crate of ours has no package URL: that of its name would be somebody else's crate.
        if !tree.ours.contains(one) {
            component["purl"] = json!(purl("cargo", &one.name, &one.version));
            if let Some(sum) = checksums.get(&id) {
                component["hashes"] = json!([{"alg": "SHA-256", "content": sum}]);
            }
        }
        component
    });
    let others = libraries.iter().map(|library| {
        json!({
            "type": "library",
            "bom-ref": library.purl,
            "name": library.name,
            "version": library.version,
            "scope": "required",
            "licenses": [{"expression": library.licence}],
            "purl": library.purl,
        })
    });
    let mut direct: Vec<String> = tree.root.iter().map(Crate::id).collect();
    direct.extend(libraries.iter().map(|library| library.purl.clone()));
    let mut dependencies = vec![json!({"ref": program, "dependsOn": direct})];
    dependencies.extend(tree.uses.iter().map(|(one, used)| {
        let used: Vec<String> = used.iter().map(Crate::id).collect();
        json!({"ref": one.id(), "dependsOn": used})
    }));
    json!({
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": {
                "type": "application",
                "bom-ref": program,
                "name": program,
                "version": version,
                "licenses": [{"expression": "Apache-2.0"}],
            },
        },
        "components": crates.chain(others).collect::<Vec<_>>(),
        "dependencies": dependencies,
    })
}

/// Returns a licence of a crate's manifest as CycloneDX has it. Old manifests have a slash in place of OR.
fn expression(licence: &str) -> Option<Value> {
    if licence.is_empty() {
        return None;
    }
    let expression = licence
        .split('/')
        .map(str::trim)
        .collect::<Vec<_>>()
        .join(" OR ");
    Some(json!([{"expression": expression}]))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TREE: &str = "0ours v0.2.0 (/a/b/ours)|Apache-2.0\n\
        1serde v1.0.1|MIT OR Apache-2.0\n\
        2core v1.0.0|\n\
        1json v2.0.0|Unlicense/MIT\n\
        2serde v1.0.1|MIT OR Apache-2.0 (*)\n";

    fn of(text: &str) -> Value {
        let tree = Tree::parse(text).expect("a tree");
        let sums = checksums(
            "version = 4\n\n[[package]]\nname = \"serde\"\nversion = \"1.0.1\"\nsource = \"r\"\nchecksum = \"ab\"\n\n\
             [[package]]\nname = \"ours\"\nversion = \"0.2.0\"\n",
        );
        document("program", "0.2.0", &tree, &sums, &[])
    }

    #[test]
    fn every_crate_is_there_once_with_what_it_uses() {
        let bom = of(TREE);
        let components = bom["components"].as_array().expect("components");
        let ids: Vec<&str> = components
            .iter()
            .filter_map(|one| one["bom-ref"].as_str())
            .collect();
        assert_eq!(
            ids,
            ["core@1.0.0", "json@2.0.0", "ours@0.2.0", "serde@1.0.1"]
        );
        let of = |name: &str| {
            let all = bom["dependencies"].as_array().expect("dependencies");
            let one = all.iter().find(|one| one["ref"] == name);
            one.expect("a crate")["dependsOn"].clone()
        };
        assert_eq!(of("program"), json!(["ours@0.2.0"]));
        assert_eq!(of("ours@0.2.0"), json!(["json@2.0.0", "serde@1.0.1"]));
        assert_eq!(of("json@2.0.0"), json!(["serde@1.0.1"]));
        assert_eq!(of("core@1.0.0"), json!([]));
    }

    #[test]
    fn a_published_crate_has_url_and_checksum_and_one_of_ours_neither_nor_its_path() {
        let bom = of(TREE);
        let serde = &bom["components"][3];
        assert_eq!(serde["purl"], "pkg:cargo/serde@1.0.1");
        assert_eq!(serde["hashes"][0]["content"], "ab");
        assert_eq!(bom["components"][2].get("purl"), None);
        assert!(!bom.to_string().contains("/a/b"), "{bom}");
    }

    #[test]
    fn a_package_url_has_no_plus() {
        assert_eq!(
            purl("deb/debian", "libc6-dev", "2.36-9+deb12u1"),
            "pkg:deb/debian/libc6-dev@2.36-9%2Bdeb12u1"
        );
    }

    #[test]
    fn licences_are_expressions_of_spdx() {
        let bom = of(TREE);
        assert_eq!(
            bom["components"][1]["licenses"],
            json!([{"expression": "Unlicense OR MIT"}])
        );
        assert_eq!(bom["components"][0].get("licenses"), None);
    }

    #[test]
    fn what_a_program_carries_inside_is_what_its_package_uses() {
        let mut tree = Tree::parse(TREE).expect("a tree");
        let inside = Tree::parse("0kernel v1.0.0 (/k)|GPL-2.0-only\n1aya v3.0.0|MIT\n");
        tree.embed(inside.expect("a tree"));
        let bom = document("program", "1", &tree, &BTreeMap::new(), &[]);
        let text = bom.to_string();
        assert!(text.contains(r#""bom-ref":"aya@3.0.0""#), "{text}");
        assert!(
            text.contains(
                r#"{"dependsOn":["json@2.0.0","kernel@1.0.0","serde@1.0.1"],"ref":"ours@0.2.0"}"#
            ),
            "{text}"
        );
    }

    #[test]
    fn another_output_of_cargo_is_refused() {
        for text in ["ours v1|MIT", "0ours|MIT", "0ours v1"] {
            assert!(Tree::parse(text).is_err(), "{text}");
        }
    }
}
