//! Finds the eBPF object that the agent carries inside itself.

use std::{env, path::PathBuf, process::exit};

fn main() {
    println!("cargo::rerun-if-env-changed=EBBTIDE_EBPF_OBJECT");
    let object = env::var_os("EBBTIDE_EBPF_OBJECT").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/ebpf/ebbtide"),
        PathBuf::from,
    );
    let Ok(object) = object.canonicalize() else {
        println!(
            "cargo::error={} is not there: run `cargo xtask build-ebpf` first",
            object.display()
        );
        exit(1);
    };
    println!("cargo::rerun-if-changed={}", object.display());
    println!("cargo::rustc-env=EBBTIDE_EBPF_OBJECT={}", object.display());
}
