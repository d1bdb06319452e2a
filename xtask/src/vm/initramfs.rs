//! The initramfs of a stock kernel: a shell, and the modules that give access to this machine's files, as a cpio
//! archive of the format "newc" (kernel: `early-userspace/buffer-format`).

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::exec;
use crate::setup::kernels::Kernel;

/// The modules that the first stage loads: drivers of the disk and the output.
const MODULES: [&str; 5] = [
    "virtio_pci",
    "virtio_console",
    "9pnet_virtio",
    "9p",
    "overlay",
];

/// The first stage: this machine's root through virtio-9p, read-only, with an overlay in memory, becomes the root.
const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
for module in /modules/*; do insmod "$module"; done
mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=507904,cache=loose,access=any root /lower || exit 1
mount -t tmpfs -o mode=755 tmpfs /mem && mkdir /mem/upper /mem/work || exit 1
mount -t overlay -o lowerdir=/lower,upperdir=/mem/upper,workdir=/mem/work overlay /new || exit 1
umount /proc
exec switch_root /new /bin/sh @SCRIPT@
"#;

/// Builds the archive for `kernel`; `script` is the second stage.
pub(super) fn build(kernel: &Kernel, script: &Path) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for dir in ["bin", "proc", "modules", "lower", "mem", "new"] {
        archive.directory(dir);
    }
    let busybox = exec::find("busybox").context("busybox is missing: run `cargo xtask setup`")?;
    archive.program("bin/busybox", &read(&busybox)?);
    let init = INIT.replace("@SCRIPT@", &exec::quote(&script.to_string_lossy()));
    archive.program("init", init.as_bytes());
    archive.modules(kernel, &MODULES)?;
    Ok(archive.finish())
}

pub(super) fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Returns a module without compression.
fn plain(path: &Path) -> Result<Vec<u8>> {
    let tool = match path.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        Some("gz") => "gzip",
        _ => return read(path),
    };
    exec::bytes(Command::new(tool).arg("-dc").arg(path))
}

/// Returns the files to load for `wanted`, in order, by depmod's `modules.dep`: each line has a module and its
/// dependencies, the last of which is loaded first. A module that is not listed is built in.
fn load_order<'d>(dependencies: &'d str, wanted: &[&str]) -> Vec<&'d str> {
    let mut order = Vec::new();
    for name in wanted {
        let line = dependencies
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(file, _)| module_name(file) == *name);
        let Some((file, needs)) = line else { continue };
        for file in needs.split_whitespace().rev().chain([file]) {
            if !order.contains(&file) {
                order.push(file);
            }
        }
    }
    order
}

fn module_name(file: &str) -> String {
    let name = file.rsplit('/').next().unwrap_or(file);
    name.split('.').next().unwrap_or(name).replace('-', "_")
}

/// A cpio archive under construction.
#[derive(Debug, Default)]
pub(super) struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    pub(super) fn directory(&mut self, name: &str) {
        self.entry(name, 0o40_755, &[]);
    }

    pub(super) fn program(&mut self, name: &str, data: &[u8]) {
        self.entry(name, 0o100_755, data);
    }

    /// Adds the modules `wanted` and what they need, named so that a shell loads them in the right order.
    pub(super) fn modules(&mut self, kernel: &Kernel, wanted: &[&str]) -> Result<()> {
        let dependencies = kernel.modules.join("modules.dep");
        let dependencies = String::from_utf8(read(&dependencies)?).context("modules.dep")?;
        for (place, file) in load_order(&dependencies, wanted).into_iter().enumerate() {
            let module = plain(&kernel.modules.join(file))?;
            self.program(&format!("modules/{place:03}.ko"), &module);
        }
        Ok(())
    }

    /// Adds all directories, files and links below `root`. Every file may be executed.
    pub(super) fn tree(&mut self, root: &Path) -> Result<()> {
        self.below(root, "")
    }

    fn below(&mut self, dir: &Path, prefix: &str) -> Result<()> {
        let list = || format!("cannot list {}", dir.display());
        for entry in std::fs::read_dir(dir).with_context(list)? {
            let path = entry.with_context(list)?.path();
            let own = path.file_name().unwrap_or_default().to_string_lossy();
            let name = format!("{prefix}{own}");
            if let Ok(target) = std::fs::read_link(&path) {
                self.entry(&name, 0o120_777, target.to_string_lossy().as_bytes());
            } else if path.is_dir() {
                self.directory(&name);
                self.below(&path, &format!("{name}/"))?;
            } else {
                self.program(&name, &read(&path)?);
            }
        }
        Ok(())
    }

    pub(super) fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }

    fn entry(&mut self, name: &str, mode: u32, data: &[u8]) {
        self.entries += 1;
        let size = u32::try_from(data.len()).unwrap_or(u32::MAX);
        let name_size = u32::try_from(name.len() + 1).unwrap_or(u32::MAX);
        // The fields: inode, mode, uid, gid, links, time, size, device and special device, name, checksum.
        let fields = [
            self.entries,
            mode,
            0,
            0,
            1,
            0,
            size,
            0,
            0,
            0,
            0,
            name_size,
            0,
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes
                .extend_from_slice(format!("{field:08X}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(data);
        self.pad();
    }

    /// Pads to a multiple of 4 bytes, at which names and data end.
    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_has_aligned_entries_and_a_trailer() {
        let mut archive = Archive::default();
        archive.directory("bin");
        archive.program("init", b"hello");
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 4, 0);
        // The header has 110 bytes; with name and NUL, padded: 110 + 4 = 114 -> 116.
        assert_eq!(&bytes[116..122], b"070701");
        assert_eq!(&bytes[..22], b"07070100000001000041ED");
        // The size of "hello" is the seventh field of the second entry.
        assert_eq!(&bytes[116 + 6 + 6 * 8..][..8], b"00000005");
        // 110 + 5 = 115 -> 116 after its beginning.
        assert_eq!(&bytes[232..237], b"hello");
        assert_eq!(&bytes[240 + 110..][..10], b"TRAILER!!!");
    }

    #[test]
    fn a_tree_is_packed_with_its_links_and_what_is_in_a_directory_after_it() {
        let dir = std::env::temp_dir().join(format!("xtask-tree-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("lib")).expect("temporary directory");
        std::fs::write(dir.join("lib/one"), "1").expect("write");
        std::os::unix::fs::symlink("one", dir.join("lib/two")).expect("a link");
        let mut archive = Archive::default();
        archive.tree(&dir).expect("it can be read");
        let text = String::from_utf8_lossy(&archive.finish()).into_owned();
        let place = |name: &str| text.find(name).expect(name);
        assert!(place("lib\0") < place("lib/one\0"), "{text}");
        // The mode of a link, and where it leads to.
        assert!(text.contains("0000A1FF"), "{text}");
        assert!(text[place("lib/two\0")..].contains("one\0"), "{text}");
        std::fs::remove_dir_all(&dir).expect("clean up");
    }

    #[test]
    fn modules_are_loaded_after_what_they_need_and_once() {
        let dependencies = "kernel/fs/9p/9p.ko.xz: kernel/net/9p/9pnet.ko.xz kernel/fs/netfs.ko.xz\n\
            kernel/net/9p/9pnet.ko.xz:\n\
            kernel/drivers/virtio/virtio-pci.ko.xz: kernel/b.ko.xz kernel/a.ko.xz\n";
        assert_eq!(
            load_order(dependencies, &["virtio_pci", "builtin", "9p"]),
            [
                "kernel/a.ko.xz",
                "kernel/b.ko.xz",
                "kernel/drivers/virtio/virtio-pci.ko.xz",
                "kernel/fs/netfs.ko.xz",
                "kernel/net/9p/9pnet.ko.xz",
                "kernel/fs/9p/9p.ko.xz",
            ]
        );
    }
}
