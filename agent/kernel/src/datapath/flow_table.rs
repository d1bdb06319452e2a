//! Makes the flow tables of pods, with the type information that older kernels require.
//!
//! Kernels before 6.3 accept a map in a map of maps only if it has the same type information (BTF) as the template in
//! the object file (`bpf_map_meta_equal`, kernel/bpf/map_in_map.c: it compares `timer_off`, which is another "none"
//! without BTF). So each table is made from the definition in the object, with the BTF that was loaded with the
//! programs.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd},
};

use aya::{maps::MapData, programs::SchedClassifier};
use aya_obj::{
    Object,
    generated::{bpf_attr, bpf_cmd},
};
use nix::libc;

use super::{
    Error,
    error::{map_error, refused},
};

/// Makes flow tables.
#[derive(Debug)]
pub struct FlowTables {
    definition: aya_obj::Map,
    btf: OwnedFd,
}

impl FlowTables {
    /// Prepares tables for the map FLOWS, from the object file and one of its loaded programs.
    ///
    /// # Errors
    /// If the object has no map FLOWS, or the program was loaded without BTF.
    pub fn new(object: &[u8], program: &SchedClassifier) -> Result<Self, Error> {
        Self::of(object, program, "FLOWS")
    }

    /// As [`FlowTables::new`], for any map of maps.
    ///
    /// # Errors
    /// If the object has no such map of maps, or the program was loaded without BTF.
    pub fn of(object: &[u8], program: &SchedClassifier, map: &'static str) -> Result<Self, Error> {
        let definition = Object::parse(object)
            .map_err(|e| Error::Load(e.into()))?
            .maps
            .get(map)
            .and_then(aya_obj::Map::inner)
            .ok_or(Error::Lacks(map))?;
        let info = program.info().map_err(|e| refused("for its BTF", e))?;
        let id = info
            .btf_id()
            .ok_or(Error::Lacks("type information (BTF)"))?;
        let btf = btf_by_id(id).map_err(|source| Error::Io {
            what: "open the type information (BTF) of",
            path: "the eBPF programs".into(),
            source,
        })?;
        Ok(Self { definition, btf })
    }

    /// Makes an empty table. It exists as long as the returned value or an entry of the map of maps refers to it.
    ///
    /// # Errors
    /// If the kernel refuses the map.
    pub fn make(&self) -> Result<MapData, Error> {
        MapData::create(self.definition.clone(), "pod_flows", Some(self.btf.as_fd()))
            .map_err(|e| map_error("make a flow table", e))
    }
}

/// Opens BTF by its ID (`BPF_BTF_GET_FD_BY_ID` of bpf(2), which aya does not export).
fn btf_by_id(id: u32) -> io::Result<OwnedFd> {
    // SAFETY: `bpf_attr` is a union of plain integers and arrays of them: zero is a valid value.
    let mut attr: bpf_attr = unsafe { std::mem::zeroed() };
    attr.__bindgen_anon_6.__bindgen_anon_1.btf_id = id;
    // SAFETY: bpf(2) with this command reads the attribute, of the size given, and keeps nothing.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            bpf_cmd::BPF_BTF_GET_FD_BY_ID,
            &raw mut attr,
            size_of::<bpf_attr>(),
        )
    };
    let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0);
    let Some(fd) = fd else {
        return Err(io::Error::last_os_error());
    };
    // SAFETY: the kernel has just given this descriptor to us, and to nobody else.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    debug_assert!(fd.as_raw_fd() >= 0);
    Ok(fd)
}
