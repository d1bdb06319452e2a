use super::*;

fn machine(os_release: &str, apt: bool, root: bool, ipvlan: Option<bool>) -> Machine {
    Machine {
        arch: "x86_64",
        system: System::parse(os_release),
        apt,
        root,
        ipvlan,
    }
}

const DEBIAN: &str = "PRETTY_NAME=Debian\nID=debian\n";
const UBUNTU: &str = "PRETTY_NAME=Ubuntu\nID=ubuntu\nID_LIKE=debian\n";
const FEDORA: &str = "PRETTY_NAME=Fedora\nID=fedora\n";

const IP: Program = ("ip", "iproute2");
const RULES: Program = ("iptables-legacy-restore", "iptables");

fn missing(programs: &[Program], source: bool, kernels: &[Kernel]) -> Missing {
    Missing {
        programs: programs.to_vec(),
        source,
        kernels: kernels.to_vec(),
    }
}

#[test]
fn what_is_out_of_reach_is_said_at_once_with_the_way_that_remains() {
    let guests = &[Kernel::Uml, Kernel::Old];
    for (what, missing, guest, machine, said) in [
        (
            "no apt, no ipvlan",
            missing(&[IP, RULES], true, guests),
            true,
            machine(FEDORA, false, true, Some(false)),
            "Fedora has no apt-get, by which setup gets what is missing. Missing:\n  \
             - programs, in brackets by Debian's packages; install your distribution's own: ip \
             (iproute2), iptables-legacy-restore (iptables)\n  \
             - the source of the compiler's library: `rustup component add rust-src`\n  \
             - user-mode Linux, the guest's kernel: Debian's package user-mode-linux\n  \
             - QEMU with Debian's stock kernel, 6.1: a package of Debian's archive (`--no-qemu`, or \
             `--kernel uml`, does without)\n\
             What remains: as root in a kernel with ipvlan (`modprobe ipvlan`) everything runs in \
             this kernel, without a guest; we are root, but this kernel has no ipvlan",
        ),
        (
            "no apt, not even `ip`",
            missing(&[IP], false, &[Kernel::Uml]),
            true,
            machine("", false, true, None),
            "this system has no apt-get, by which setup gets what is missing. Missing:\n  \
             - programs, in brackets by Debian's packages; install your distribution's own: ip \
             (iproute2)\n  \
             - user-mode Linux, the guest's kernel: Debian's package user-mode-linux\n\
             What remains: as root in a kernel with ipvlan (`modprobe ipvlan`) everything runs in \
             this kernel, without a guest; we are root; whether this kernel has it cannot be told \
             without `ip`",
        ),
        (
            "no apt, but root and ipvlan",
            missing(&[RULES], false, &[]),
            false,
            machine(FEDORA, false, true, Some(true)),
            "Fedora has no apt-get, by which setup gets what is missing. Missing:\n  \
             - programs, in brackets by Debian's packages; install your distribution's own: \
             iptables-legacy-restore (iptables)\n\
             With these everything runs in this kernel, without a guest",
        ),
        (
            "no apt, root and ipvlan, but a guest was asked for",
            missing(&[], false, &[Kernel::Uml]),
            true,
            machine(FEDORA, false, true, Some(true)),
            "Fedora has no apt-get, by which setup gets what is missing. Missing:\n  \
             - user-mode Linux, the guest's kernel: Debian's package user-mode-linux\n\
             What remains: everything runs in this kernel, which has ipvlan, as root, which we are, \
             without a guest: leave --kernel and --qemu away (`test --kernel uml`)",
        ),
        (
            "apt, not root",
            missing(&[IP, RULES], true, guests),
            true,
            machine(DEBIAN, true, false, Some(false)),
            "Debian has apt-get, but we are not root. Missing:\n  \
             - programs: run as root: apt-get install iproute2 iptables",
        ),
        (
            "Ubuntu",
            missing(&[IP], true, guests),
            true,
            machine(UBUNTU, true, true, Some(false)),
            "Ubuntu has not all that is needed, and setup cannot get it. Missing:\n  \
             - the source of the compiler's library: `rustup component add rust-src`\n  \
             - QEMU with Debian's stock kernel, 6.1: a package of Debian's archive (`--no-qemu`, or \
             `--kernel uml`, does without)\n\
             What remains: as root in a kernel with ipvlan (`modprobe ipvlan`) everything runs in \
             this kernel, without a guest; we are root, but this kernel has no ipvlan",
        ),
        (
            "another CPU",
            missing(&[], false, &[Kernel::Uml]),
            true,
            Machine {
                arch: "aarch64",
                ..machine(DEBIAN, true, false, Some(false))
            },
            "Debian has not all that is needed, and setup cannot get it. Missing:\n  \
             - user-mode Linux: it is for x86-64, and this machine is aarch64\n\
             What remains: as root in a kernel with ipvlan (`modprobe ipvlan`) everything runs in \
             this kernel, without a guest; we are not root",
        ),
    ] {
        assert_eq!(
            refusal(missing, guest, &machine).as_deref(),
            Some(said),
            "{what}"
        );
    }
}

#[test]
fn what_setup_can_get_is_no_reason_to_refuse() {
    let guests = &[Kernel::Uml, Kernel::Old];
    for (what, missing, machine) in [
        (
            "apt and root",
            missing(&[IP], true, guests),
            machine(DEBIAN, true, true, Some(false)),
        ),
        (
            "apt, not root, no program missing",
            missing(&[], true, guests),
            machine(DEBIAN, true, false, Some(false)),
        ),
        (
            "Ubuntu, no kernel of Debian's",
            missing(&[IP], false, &[Kernel::Uml]),
            machine(UBUNTU, true, true, Some(false)),
        ),
    ] {
        assert_eq!(refusal(missing, true, &machine), None, "{what}");
    }
}

#[test]
fn this_kernel_stands_in_for_user_mode_linux_and_needs_no_depmod() {
    let (all, demo) = (&[Kernel::Uml, Kernel::Old], &[debian::DEMO][..]);
    let guest = ["depmod", "qemu-system-x86_64"];
    for (here, kernels, expected_kernels, expected) in [
        (true, &all[..1], &[][..], &[][..]),
        (false, &all[..1], &all[..1], &guest[..1]),
        (true, &all[..], &all[1..], &guest[..]),
        (false, &all[..], &all[..], &guest[..]),
    ] {
        let needs = Needs::new(here, demo, kernels);
        assert_eq!(needs.kernels, expected_kernels);
        let names: Vec<&str> = needs.programs.iter().map(|(name, _)| *name).collect();
        for name in guest {
            assert_eq!(
                names.contains(&name),
                expected.contains(&name),
                "{name}: {names:?}"
            );
        }
        assert!(names.contains(&"ip") && names.contains(&"cc"), "{names:?}");
        assert_eq!(
            names.contains(&"iptables-legacy-restore"),
            here,
            "{names:?}"
        );
    }
}

#[test]
fn a_guest_alone_needs_no_compiler() {
    for (kernel, qemu) in [(Kernel::Uml, false), (Kernel::Floor, true)] {
        let needs = Needs::guest(kernel);
        let has = |name| needs.programs.iter().any(|(program, _)| *program == name);
        assert!(!needs.builds && !has("cc") && has("depmod"), "{needs:?}");
        assert_eq!(has("qemu-system-x86_64"), qemu, "{needs:?}");
        assert_eq!(needs.kernels, [kernel]);
    }
}
