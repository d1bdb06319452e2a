//! Resets the maps of a bench to their first state.
//! It calls bpf(2) directly: the types of keys and values do not matter here, and aya requires them for each map.

use std::{
    collections::BTreeMap,
    io,
    ops::{Deref, DerefMut},
    os::fd::{AsFd as _, AsRawFd as _},
    ptr,
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
};

use aya::{
    maps::{Map, MapData},
    util::nr_cpus,
};
use aya_obj::generated::bpf_cmd;
use ebbtide_vpc::bpf;
use nix::libc;

use crate::{Bench, maps::patiently};

/// The benches that no test uses at the moment.
static IDLE: Mutex<Vec<Bench>> = Mutex::new(Vec::new());

/// A bench in its first state, which another test gets afterwards.
#[derive(Debug)]
pub struct Lent(Option<Bench>);

impl Deref for Lent {
    type Target = Bench;

    fn deref(&self) -> &Bench {
        self.0.as_ref().unwrap()
    }
}

impl DerefMut for Lent {
    fn deref_mut(&mut self) -> &mut Bench {
        self.0.as_mut().unwrap()
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        // A test that failed does not pass its bench on to the next one.
        if !thread::panicking() {
            idle().extend(self.0.take());
        }
    }
}

fn idle() -> MutexGuard<'static, Vec<Bench>> {
    IDLE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The contents of a map: values by keys, as bytes.
pub type Contents = BTreeMap<Vec<u8>, Vec<u8>>;

impl Bench {
    /// Lends a bench to a test that attaches its programs nowhere: one that earlier tests of this process have used,
    /// after a reset, or a new one if all are in use.
    ///
    /// # Panics
    /// As [`Bench::new`] and [`Bench::reset`].
    #[must_use]
    pub fn lent() -> Lent {
        let used = idle().pop();
        Lent(Some(match used {
            Some(mut bench) => {
                bench.reset();
                bench
            }
            None => Self::new(),
        }))
    }

    /// Empties all maps and fills them again. That takes a small part of the time of loading. The programs' run counts
    /// stay ([`Bench::info`]).
    ///
    /// # Panics
    /// If the kernel refuses.
    pub fn reset(&mut self) {
        for (_, map) in self.maps() {
            map.clear().unwrap();
        }
        self.fill();
    }

    /// Returns the contents of its maps, by the maps' names.
    ///
    /// # Panics
    /// If a map cannot be read.
    #[must_use]
    pub fn contents(&self) -> BTreeMap<String, Contents> {
        let maps = self.maps().into_iter();
        maps.map(|(name, map)| (name, map.contents().unwrap()))
            .collect()
    }

    /// Adds an invalid entry to each of its maps, the worst that a test can leave behind.
    ///
    /// # Panics
    /// If the kernel refuses.
    pub fn soil(&mut self) {
        for (_, map) in self.maps() {
            patiently(|| map.soil());
        }
    }

    /// Returns the maps to reset: all but constants, which cannot be changed.
    fn maps(&self) -> Vec<(String, Raw<'_>)> {
        let maps = self.object.maps().filter(|(name, _)| *name != ".rodata");
        maps.map(|(name, map)| (name.to_owned(), Raw::of(name, map)))
            .collect()
    }
}

/// A map without types for its keys and values.
struct Raw<'a> {
    map: &'a MapData,
    /// Whether its entries exist from the beginning and cannot be removed.
    is_array: bool,
    is_per_cpu: bool,
    key: usize,
    /// The bytes that the kernel reads and writes for one entry.
    value: usize,
    entries: u32,
}

impl<'a> Raw<'a> {
    /// # Panics
    /// If it is of a kind that no program had when this was written, such as variables, which may begin as
    /// something else than zero.
    fn of(name: &str, map: &'a Map) -> Self {
        assert!(
            !name.starts_with('.'),
            "what were {name} when they were new?"
        );
        let of = |map: &'a MapData, is_array| {
            let info = map.info().unwrap();
            Self {
                map,
                is_array,
                is_per_cpu: false,
                key: info.key_size() as usize,
                value: info.value_size() as usize,
                entries: info.max_entries(),
            }
        };
        match map {
            Map::Array(map) => of(map, true),
            Map::HashMap(map) | Map::LruHashMap(map) => of(map, false),
            Map::PerCpuHashMap(_) | Map::PerCpuArray(_) => {
                let (map, is_array) = match map {
                    Map::PerCpuArray(map) => (map, true),
                    Map::PerCpuHashMap(map) => (map, false),
                    other => unreachable!("{other:?} was another kind before"),
                };
                let mut raw = of(map, is_array);
                raw.is_per_cpu = true;
                // include/uapi/linux/bpf.h: each CPU's value, padded.
                raw.value = raw.value.next_multiple_of(8) * nr_cpus().unwrap();
                raw
            }
            other => panic!("how is {name} emptied, which is {other:?}?"),
        }
    }

    fn contents(&self) -> io::Result<Contents> {
        let mut contents = Contents::new();
        for key in self.keys()? {
            let mut value = vec![0; self.value];
            self.call(bpf_cmd::BPF_MAP_LOOKUP_ELEM, &key, value.as_mut_ptr())?;
            contents.insert(key, value);
        }
        Ok(contents)
    }

    fn clear(&self) -> io::Result<()> {
        if self.is_array {
            return self.zero();
        }
        // All keys are read first: the kernel begins again after a key that was removed.
        for key in self.keys()? {
            self.call(bpf_cmd::BPF_MAP_DELETE_ELEM, &key, ptr::null_mut())?;
        }
        Ok(())
    }

    /// Overwrites an array with zeros in one call: one has many thousands of entries.
    fn zero(&self) -> io::Result<()> {
        if self.is_per_cpu {
            // Older kernels have no batches for these, which are short.
            for key in 0..self.entries {
                let mut zeros = vec![0; self.value];
                self.call(
                    bpf_cmd::BPF_MAP_UPDATE_ELEM,
                    &key.to_ne_bytes(),
                    zeros.as_mut_ptr(),
                )?;
            }
            return Ok(());
        }
        let keys: Vec<u32> = (0..self.entries).collect();
        let values = vec![0_u8; self.value.next_multiple_of(8) * keys.len()];
        let mut attr = bpf::attribute();
        attr.batch.map_fd = self.descriptor();
        attr.batch.keys = keys.as_ptr() as u64;
        attr.batch.values = values.as_ptr() as u64;
        attr.batch.count = self.entries;
        bpf::bpf(bpf_cmd::BPF_MAP_UPDATE_BATCH, &mut attr).map(drop)
    }

    fn soil(&self) -> io::Result<()> {
        let key = match self.is_array {
            true => vec![0; self.key],
            false => vec![0xa5; self.key],
        };
        let mut value = vec![0x5a; self.value];
        self.call(bpf_cmd::BPF_MAP_UPDATE_ELEM, &key, value.as_mut_ptr())
    }

    fn keys(&self) -> io::Result<Vec<Vec<u8>>> {
        let mut keys: Vec<Vec<u8>> = Vec::new();
        loop {
            let mut next = vec![0; self.key];
            let last = keys.last().map(Vec::as_slice).unwrap_or_default();
            match self.call(bpf_cmd::BPF_MAP_GET_NEXT_KEY, last, next.as_mut_ptr()) {
                Ok(()) => keys.push(next),
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(keys),
                Err(error) => return Err(error),
            }
        }
    }

    /// Runs a command about one key (none if it is empty); `other` is what it reads or writes besides.
    fn call(&self, command: bpf_cmd, key: &[u8], other: *mut u8) -> io::Result<()> {
        let mut attr = bpf::attribute();
        attr.__bindgen_anon_2.map_fd = self.descriptor();
        if !key.is_empty() {
            attr.__bindgen_anon_2.key = key.as_ptr() as u64;
        }
        attr.__bindgen_anon_2.__bindgen_anon_1.value = other as u64;
        bpf::bpf(command, &mut attr).map(drop)
    }

    fn descriptor(&self) -> u32 {
        self.map.fd().as_fd().as_raw_fd().cast_unsigned()
    }
}
