//! Measures each eBPF program: instructions, stack, and nanoseconds for each kind of packet.

use anyhow::{Context as _, Result, ensure};
use aya_obj::{Object, generated::bpf_insn};
use ebbtide_layout::{DEFAULT_HOST_BYPASS_MARK, DEFAULT_MARK, HOST_BYPASS_MAC};
use ebbtide_programs::{
    Bench, CLIENT, CLIENT6, NODE, OTHER, OTHER_POD, POD, POD6, THAT_NIC, names,
    packets::{echo, flow, from_pod, tcp, udp, with_flags},
};
use ebbtide_vpc::workspace;

use super::{
    figures::{Figures, Series, Table},
    machine::Machine,
    verifier::{self, Verifier},
};

/// The extent of a run.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    /// Measurements of each packet. The minimum is the reliable figure: disturbances only make one slower.
    pub rounds: usize,
    /// Runs of the program in each measurement.
    pub repeat: u32,
}

impl Extent {
    /// Enough for figures.
    pub const FULL: Self = Self {
        rounds: 15,
        repeat: 200_000,
    };
    /// Just enough to see that it works.
    pub const SHORT: Self = Self {
        rounds: 1,
        repeat: 100,
    };
}

/// The sizes of a program, each with a table, in this order.
const SIZES: [(&str, &str, &str); 6] = [
    (
        "instructions",
        "The program in the object, without the functions it calls.",
        "instructions",
    ),
    (
        "verified instructions",
        "What the verifier walked on all paths; its limit is a million. Zero before Linux 5.16, which \
         does not tell.",
        "instructions",
    ),
    (
        "translated",
        "What the verifier made of it, with the functions it calls: dead code gone, map look-ups in line.",
        "bytes",
    ),
    (
        "machine code",
        "What the JIT made of it; zero without JIT.",
        "bytes",
    ),
    ("stack", "Of 512, without the functions it calls.", "bytes"),
    (
        "verifier's log",
        "What the verifier writes when it is asked for all: each instruction on each path, with what is \
         known there.",
        "bytes",
    ),
];

/// Measures all programs, by BPF_PROG_TEST_RUN.
///
/// # Errors
/// If the object cannot be read.
pub fn run(extent: Extent) -> Result<Figures> {
    let machine = Machine::look();
    let mut tables = costs(extent);
    tables.extend(sizes()?);
    Ok(Figures {
        name: "programs".to_owned(),
        machine,
        tables,
        timelines: Vec::new(),
        notes: vec!["nanoseconds include what the kernel's test run takes itself".to_owned()],
    })
}

fn sizes() -> Result<Vec<Table>> {
    let path = workspace::EBPF.file("ebbtide")?;
    let bytes = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
    let object = Object::parse(&bytes)?;
    let bench = Bench::new();
    let verifier = Verifier::of(&bytes)?;
    let mut tables: Vec<Table> = SIZES
        .map(|(title, meaning, unit)| Table::new(title, meaning, unit))
        .into();
    for program in names() {
        let function = object
            .programs
            .get(program)
            .and_then(|program| object.functions.get(&program.function_key()))
            .with_context(|| format!("the object has no program {program}"))?;
        let info = bench.info(program);
        let log = verifier.log(program, info.btf_id())?;
        let walked = info.verified_instruction_count();
        ensure!(
            walked.is_none() || walked == verifier::walked(&log),
            "{program}: {walked:?} instructions, and the log is of another program: {:?}",
            log.lines().next_back()
        );
        let sizes = [
            function.instructions.len() as f64,
            f64::from(info.verified_instruction_count().unwrap_or_default()),
            f64::from(info.size_translated().unwrap_or_default()),
            f64::from(info.size_jitted()),
            stack(&function.instructions) as f64,
            log.len() as f64,
        ];
        for (table, size) in tables.iter_mut().zip(sizes) {
            table.rows.push(Series {
                name: program.to_owned(),
                values: vec![size],
            });
        }
    }
    Ok(tables)
}

/// Returns the depth of the stack: the lowest place below the frame pointer (r10) that a load or store uses, or an
/// address derived from it (`rX = r10; rX += imm`).
fn stack(instructions: &[bpf_insn]) -> usize {
    let frame = 10;
    let used = instructions.windows(2).flat_map(|pair| {
        let [one, two] = pair else { return [0, 0] };
        let copied = one.code == 0xbf && one.src_reg() == frame;
        let added = two.code == 0x07 && two.dst_reg() == one.dst_reg();
        let (class, offset) = (one.code & 7, i32::from(one.off));
        let direct = match class {
            1 => one.src_reg() == frame,
            2 | 3 => one.dst_reg() == frame,
            _ => false,
        };
        [
            if copied && added { two.imm } else { 0 },
            if direct { offset } else { 0 },
        ]
    });
    let lowest = used.min().unwrap_or(0).min(0);
    usize::try_from(-lowest).unwrap_or(0)
}

/// Creates a table for each program, with a row for each packet.
fn costs(extent: Extent) -> Vec<Table> {
    const FAR: (&str, u16) = ("180.17.16.11", 8080);
    const ACK: u8 = 0x10;
    let segment = |from, to| with_flags(tcp(from, to), ACK);
    let host_bypass = |mut frame: Vec<u8>| {
        frame[6..12].copy_from_slice(&HOST_BYPASS_MAC);
        frame
    };
    let client = (CLIENT, 5000);
    let mut bench = Bench::new();
    bench.is_followed(true);
    bench.remember(flow((POD, 53), client, 17), THAT_NIC);
    bench.remember_forwarded(flow((POD, 5001), FAR, 6));
    let rows = [
        ("veth_ingress", "TCP", segment(client, (POD, 80)), 0),
        ("veth_ingress", "SYN", tcp(client, (POD, 80)), 0),
        ("veth_ingress", "UDP, known", udp(client, (POD, 54)), 0),
        (
            "veth_ingress",
            "UDP, IPv6, known",
            udp((CLIENT6, 5000), (POD6, 53)),
            0,
        ),
        ("veth_ingress", "echo request", echo(CLIENT, POD, true), 0),
        ("nic_egress", "TCP", segment((POD, 80), client), 0),
        (
            "nic_egress",
            "TCP, marked",
            segment((POD, 80), client),
            DEFAULT_MARK,
        ),
        (
            "nic_egress",
            "TCP, by the host-stack bypass",
            segment((POD, 80), client),
            DEFAULT_HOST_BYPASS_MARK,
        ),
        (
            "nic_egress",
            "UDP, not known",
            udp((POD, 53), (CLIENT, 5001)),
            0,
        ),
        ("nic_egress", "UDP, redirected", udp((POD, 53), client), 0),
        (
            "nic_egress",
            "UDP, to a pod on the NIC",
            udp((POD, 53), (OTHER_POD, 5001)),
            0,
        ),
        ("nic_ingress", "TCP", segment(client, (POD, 80)), 0),
        (
            "nic_ingress",
            "SYN, not noted",
            tcp((CLIENT, 5001), (POD, 80)),
            0,
        ),
        ("nic_ingress", "SYN, noted", tcp(client, (POD, 80)), 0),
        ("nic_ingress", "UDP", udp((CLIENT, 5002), (POD, 53)), 0),
        (
            "host_nic_ingress",
            "TCP for the node",
            tcp(client, (NODE, 80)),
            0,
        ),
        (
            "host_nic_ingress",
            "TCP for a pod",
            segment((CLIENT, 5001), (POD, 80)),
            0,
        ),
        (
            "host_nic_ingress",
            "SYN for a pod",
            tcp((CLIENT, 5001), (POD, 80)),
            0,
        ),
        (
            "host_nic_ingress",
            "UDP for a pod",
            udp((CLIENT, 5001), (POD, 53)),
            0,
        ),
        (
            "host_nic_ingress",
            "to the node's stack",
            tcp(FAR, (POD, 5001)),
            0,
        ),
        (
            "host_nic_egress",
            "TCP of the node",
            tcp((NODE, 80), client),
            0,
        ),
        ("host_nic_egress", "TCP of a pod", tcp((POD, 80), client), 0),
        (
            "host_nic_egress",
            "of another NIC",
            tcp((OTHER, 80), client),
            0,
        ),
        (
            "host_veth_egress",
            "the node's own",
            tcp(client, (POD, 80)),
            0,
        ),
        (
            "host_veth_ingress",
            "reply",
            from_pod(tcp((POD, 80), client), THAT_NIC),
            0,
        ),
        (
            "host_veth_ingress",
            "the pod's own",
            tcp((POD, 5000), FAR),
            0,
        ),
        (
            "host_veth_ingress",
            "by the host-stack bypass",
            host_bypass(segment((POD, 80), client)),
            0,
        ),
    ];
    let mut tables: Vec<Table> = Vec::new();
    for (program, packet, frame, mark) in rows {
        if tables.last().is_none_or(|table| table.title != program) {
            tables.push(Table::new(program, "One packet.", "ns"));
        }
        let time = |_| {
            let time = bench.time(program, &frame, mark, extent.repeat);
            time.as_secs_f64() * 1e9
        };
        if let Some(table) = tables.last_mut() {
            table.rows.push(Series {
                name: packet.to_owned(),
                values: (0..extent.rounds).map(time).collect(),
            });
        }
    }
    tables
}
