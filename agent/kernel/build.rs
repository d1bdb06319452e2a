//! Finds the eBPF object that the agent carries inside itself.

use std::{env, path::PathBuf, process::exit};

fn main() {
    println!("cargo::rerun-if-env-changed=EBBTIDE_EBPF_OBJECT");
    let beside = || {
        // Cargo sets it when it runs a build script.
        let here = env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default();
        PathBuf::from(here).join("../../target/ebpf/ebbtide")
    };
    let object = env::var_os("EBBTIDE_EBPF_OBJECT").map_or_else(beside, PathBuf::from);
    let Ok(object) = object.canonicalize() else {
        println!(
            "cargo::error={} is not there: run `cargo xtask build-ebpf` first",
            object.display()
        );
        exit(1);
    };
    let trace = object.with_file_name("trace");
    for (name, file) in [
        ("EBBTIDE_EBPF_OBJECT", object),
        ("EBBTIDE_TRACE_OBJECT", trace),
    ] {
        println!("cargo::rerun-if-changed={}", file.display());
        println!("cargo::rustc-env={name}={}", file.display());
    }
}
