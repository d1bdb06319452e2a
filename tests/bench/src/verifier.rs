//! Reads what the kernel's verifier logs about the programs.

use std::os::fd::{AsFd as _, AsRawFd as _};

use anyhow::{Context as _, Result, bail};
use aya::{
    Ebpf, EbpfLoader,
    maps::{Map, MapData},
};
use aya_obj::{
    Object,
    generated::{bpf_cmd, bpf_prog_type},
};
use ebbtide_vpc::bpf;

/// The log level that has each instruction on each path, with the known state (`BPF_LOG_LEVEL2`,
/// include/linux/bpf_verifier.h). The level below it only has the path to a refusal.
const WHOLE: u32 = 2;

/// The maximum size of a log that is read.
const LONGEST: usize = 256 << 20;

/// The object file, prepared for a second load: aya reads the verifier's log only after a refusal.
pub(super) struct Verifier {
    object: Object,
    /// Keeps the maps, whose descriptors are in the instructions.
    _maps: Ebpf,
}

impl Verifier {
    /// Creates the maps and relocates the instructions, as aya does.
    ///
    /// # Errors
    /// If it is not such an object, or the kernel makes no maps.
    pub(super) fn of(bytes: &[u8]) -> Result<Self> {
        let maps = EbpfLoader::new().load(bytes).context("making the maps")?;
        let mut object = Object::parse(bytes)?;
        let sections = object.functions.keys().map(|(section, _)| *section);
        let sections = sections.collect();
        let mut found = Vec::new();
        for (name, map) in maps.maps() {
            let descriptor = data(map)?.fd().as_fd().as_raw_fd();
            let shape = object.maps.get(name);
            let shape = shape.with_context(|| format!("a map {name} of no object"))?;
            found.push((name, descriptor, shape.clone()));
        }
        let found = found
            .iter()
            .map(|(name, descriptor, shape)| (*name, *descriptor, shape));
        object.relocate_maps(found, &sections)?;
        object.relocate_calls(&sections)?;
        object.sanitize_functions(aya::features());
        Ok(Self {
            object,
            _maps: maps,
        })
    }

    /// Returns the whole log of a program. `types` is the kernel's ID of the BTF that aya loads.
    ///
    /// # Errors
    /// If the verifier refuses it; the error has the end of the log.
    pub(super) fn log(&self, program: &str, types: Option<u32>) -> Result<String> {
        let function = self
            .object
            .programs
            .get(program)
            .and_then(|program| self.object.functions.get(&program.function_key()))
            .with_context(|| format!("the object has no program {program}"))?;
        let types = types.map(type_information).transpose()?;
        let (functions, lines) = (
            function.func_info.func_info_bytes(),
            function.line_info.line_info_bytes(),
        );
        let mut log = vec![0_u8; LONGEST];
        let mut attribute = bpf::attribute();
        // SAFETY: all of the union is zero, which is a valid value of this part of it.
        let load = unsafe { &mut attribute.__bindgen_anon_3 };
        load.prog_type = bpf_prog_type::BPF_PROG_TYPE_SCHED_CLS as u32;
        load.insns = function.instructions.as_ptr() as u64;
        load.insn_cnt = u32::try_from(function.instructions.len())?;
        load.license = c"GPL".as_ptr() as u64;
        load.log_level = WHOLE;
        load.log_buf = log.as_mut_ptr() as u64;
        load.log_size = u32::try_from(log.len())?;
        if let Some(types) = &types {
            load.prog_btf_fd = types.as_raw_fd().cast_unsigned();
            load.func_info = functions.as_ptr() as u64;
            load.func_info_cnt = u32::try_from(function.func_info.len())?;
            load.func_info_rec_size = u32::try_from(function.func_info_rec_size)?;
            load.line_info = lines.as_ptr() as u64;
            load.line_info_cnt = u32::try_from(function.line_info.len())?;
            load.line_info_rec_size = u32::try_from(function.line_info_rec_size)?;
        }
        let loaded = bpf::open(bpf_cmd::BPF_PROG_LOAD, &mut attribute);
        log.truncate(log.iter().position(|byte| *byte == 0).unwrap_or(LONGEST));
        let log = String::from_utf8_lossy(&log).into_owned();
        let last = log.lines().next_back().unwrap_or_default();
        loaded.with_context(|| format!("loading {program} with a log: {last}"))?;
        Ok(log)
    }
}

/// Returns the number of walked instructions at the end of a log: "processed 8409 insns (limit 1000000) ...".
pub(super) fn walked(log: &str) -> Option<u32> {
    let end = log
        .lines()
        .rev()
        .find(|line| line.starts_with("processed "))?;
    end.split_whitespace().nth(1)?.parse().ok()
}

fn type_information(id: u32) -> Result<std::os::fd::OwnedFd> {
    let mut attribute = bpf::attribute();
    attribute.__bindgen_anon_6.__bindgen_anon_1.btf_id = id;
    bpf::open(bpf_cmd::BPF_BTF_GET_FD_BY_ID, &mut attribute)
        .with_context(|| format!("opening the types {id}"))
}

/// Returns the data of a map, of the kinds that the programs use.
fn data(map: &Map) -> Result<&MapData> {
    Ok(match map {
        Map::Array(data)
        | Map::HashMap(data)
        | Map::HashOfMaps(data)
        | Map::LruHashMap(data)
        | Map::PerCpuArray(data)
        | Map::PerCpuHashMap(data)
        | Map::PerCpuLruHashMap(data)
        | Map::RingBuf(data) => data,
        other => bail!("a map of another kind: {other:?}"),
    })
}
