//! What each eBPF program costs: instructions, stack, and nanoseconds for a packet of each kind.

use anyhow::{Context as _, Result};
use aya_obj::{Object, generated::bpf_insn};
use comfy_table::{CellAlignment, Table, presets::ASCII_MARKDOWN};
use ebbtide_layout::HostFlow;
use serde::Serialize;

use crate::{
    programs::{
        Bench, CLIENT, CLIENT6, NODE, OTHER, POD, POD6, REPLY, THAT, THAT_MARK, names,
        packets::{echo, flow, tcp, udp},
    },
    workspace,
};

/// Every figure is the best of so many measurements: what disturbs one only ever makes it slower.
const ROUNDS: u32 = 15;

/// A program's size.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Size {
    /// Its name.
    pub program: &'static str,
    /// Instructions in the object.
    pub instructions: usize,
    /// Instructions that the verifier walked, on all paths; none before Linux 5.16.
    pub verified: Option<u32>,
    /// Bytes of machine code; zero without JIT.
    pub machine_code: u32,
    /// Bytes of stack, of 512.
    pub stack: usize,
}

/// What one packet costs.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Cost {
    /// The program.
    pub program: &'static str,
    /// Which packet.
    pub packet: &'static str,
    /// Nanoseconds, test run and its own overhead together.
    pub nanoseconds: u64,
}

/// Everything that was measured.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// By program.
    pub sizes: Vec<Size>,
    /// By program and packet.
    pub costs: Vec<Cost>,
}

/// Measures all programs; `repeat` runs for each measurement.
///
/// # Errors
/// When the object cannot be read.
pub fn measure(repeat: u32) -> Result<Report> {
    let path = workspace::EBPF.file("ebbtide")?;
    let bytes = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
    let object = Object::parse(&bytes)?;
    let bench = Bench::new();
    let sizes = names()
        .map(|program| size(program, &object, &bench))
        .collect::<Result<_>>()?;
    Ok(Report {
        sizes,
        costs: costs(repeat),
    })
}

fn size(program: &'static str, object: &Object, bench: &Bench) -> Result<Size> {
    let function = object
        .programs
        .get(program)
        .and_then(|program| object.functions.get(&program.function_key()))
        .with_context(|| format!("the object has no program {program}"))?;
    let info = bench.info(program);
    Ok(Size {
        program,
        instructions: function.instructions.len(),
        verified: info.verified_instruction_count(),
        machine_code: info.size_jitted(),
        stack: stack(&function.instructions),
    })
}

/// The lowest place below the frame pointer (r10) that is used: by a load or store, or by an
/// address made of it (`rX = r10; rX += imm`).
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

fn costs(repeat: u32) -> Vec<Cost> {
    const FAR: (&str, u16) = ("180.17.16.11", 8080);
    let client = (CLIENT, 5000);
    let to_pod = HostFlow {
        mark: THAT_MARK | REPLY,
        ..HostFlow::default()
    };
    let forwarded = HostFlow {
        forwarded: 1,
        ..HostFlow::default()
    };
    let mut bench = Bench::new();
    bench.remember(flow((POD, 53), client, 17), THAT);
    bench.remember_in_host(flow((POD, 80), client, 6), to_pod);
    bench.remember_in_host(flow((POD, 5001), FAR, 6), forwarded);
    let rows = [
        ("veth_ingress", "TCP", tcp(client, (POD, 80)), 0),
        ("veth_ingress", "UDP, known", udp(client, (POD, 54)), 0),
        (
            "veth_ingress",
            "UDP, IPv6, known",
            udp((CLIENT6, 5000), (POD6, 53)),
            0,
        ),
        ("veth_ingress", "echo request", echo(CLIENT, POD, true), 0),
        ("nic_egress", "TCP", tcp((POD, 80), client), 0),
        (
            "nic_egress",
            "UDP, not known",
            udp((POD, 53), (CLIENT, 5001)),
            0,
        ),
        ("nic_egress", "UDP, steered", udp((POD, 53), client), 0),
        ("nic_ingress", "TCP", tcp(client, (POD, 80)), 0),
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
            tcp((CLIENT, 5001), (POD, 80)),
            0,
        ),
        (
            "host_nic_ingress",
            "steered into the host",
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
            "host_veth_egress",
            "NodePort, known",
            tcp(client, (POD, 80)),
            THAT_MARK,
        ),
        ("host_veth_ingress", "reply", tcp((POD, 80), client), 0),
        (
            "host_veth_ingress",
            "the pod's own",
            tcp((POD, 5000), FAR),
            0,
        ),
    ];
    rows.into_iter()
        .map(|(program, packet, frame, mark)| {
            let best = (0..ROUNDS)
                .map(|_| bench.time(program, &frame, mark, repeat))
                .min();
            let nanoseconds = best.unwrap_or_default().as_nanos();
            Cost {
                program,
                packet,
                nanoseconds: u64::try_from(nanoseconds).unwrap_or(u64::MAX),
            }
        })
        .collect()
}

/// The figures as Markdown.
#[must_use]
pub fn text(report: &Report) -> String {
    let mut sizes = table([
        "program",
        "instructions",
        "verified",
        "machine code",
        "stack",
    ]);
    for size in &report.sizes {
        let verified = size.verified.map_or_else(|| "?".into(), |n| n.to_string());
        sizes.add_row([
            size.program.to_owned(),
            size.instructions.to_string(),
            verified,
            size.machine_code.to_string(),
            size.stack.to_string(),
        ]);
    }
    let mut costs = table(["program", "packet", "ns"]);
    for cost in &report.costs {
        let ns = cost.nanoseconds.to_string();
        costs.add_row([cost.program.to_owned(), cost.packet.to_owned(), ns]);
    }
    for column in sizes.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    for column in costs.column_iter_mut().skip(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    format!("{sizes}\n\n{costs}\n")
}

fn table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_style(ASCII_MARKDOWN).set_header(header);
    table
}
