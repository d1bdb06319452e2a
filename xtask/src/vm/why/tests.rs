use super::*;

/// Real output of machines, and a word of the explanation.
const DEATHS: &[(&str, &str)] = &[
    (
        "Kernel panic - not syncing: Attempted to kill init! exitcode=0x0000000b\n\
         CPU: 0 PID: 1 Comm: swapper Not tainted 6.1.176 #1\n\
         Call Trace:\n [<6002d0ed>] do_signal+0x24/0x12d\n [<6002e653>] fatal_sigsegv+0x39/0x45\n \
         [<6004b1ca>] ? put_fp_registers+0x10/0x12\n [<60048839>] userspace+0xab/0x570\nAborted\n",
        "extended registers",
    ),
    (
        "ptrace: Operation not permitted\ncheck_ptrace : expected SIGSTOP, got status = 9\n",
        "may not use ptrace",
    ),
    (
        "check_ptrace : ptrace failed: Function not implemented\n",
        "does not do what user-mode Linux needs",
    ),
    (
        "stop_ptraced_child : ptrace failed\n",
        "does not do what user-mode Linux needs",
    ),
    (
        "Operation not permitted\n/dev/shm must be not mounted noexec\n",
        "mounted noexec",
    ),
    (
        "kmsg_dump:\n<3>Bus error - the host /dev/shm or /tmp mount likely just ran out of space\n\
         <0>Kernel panic - not syncing: Kernel mode signal 7\nAborted\n",
        "ran out of space",
    ),
    (
        "cannot create /x/status.new: No space left on device\n",
        "is full",
    ),
    (
        "setup_physmem - mapping 3204317184 bytes of memory at 0x(____ptrval____) failed - errno = -12\n",
        "limit on address space",
    ),
    (
        "Too few physical memory! Needed=4194304, given=1048576\n",
        "too little memory",
    ),
    (
        "qemu-system-x86_64: cannot set up guest memory 'pc.ram': Cannot allocate memory\n",
        "3 GiB",
    ),
    (
        "Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)\nAborted\n",
        "no root file system",
    ),
    (
        "Kernel panic - not syncing: Requested init /x/init.sh failed (error -2).\n",
        "first script",
    ),
    (
        "9pnet_virtio: no channels available for device root\n",
        "virtio-9p",
    ),
    (
        "Out of memory: Killed process 7 (python3) total-vm:204800kB\n",
        "ran out of memory",
    ),
    (
        "Kernel panic - not syncing: System is deadlocked on memory\n",
        "ran out of memory",
    ),
    (
        "Kernel panic - not syncing: free_area_init: Failed to allocate 16384 bytes\n",
        "too little memory",
    ),
    (
        "/x/linux.uml: /lib/x86_64-linux-gnu/libc.so.6: version `GLIBC_2.38' not found (required by \
         /x/linux.uml)\n",
        "newer glibc",
    ),
    (
        "/x/linux.uml: error while loading shared libraries: libutil.so.1: cannot open shared object \
         file: No such file or directory\n",
        "shared library",
    ),
    ("sh: 1: /x/linux.uml: Exec format error\n", "another CPU"),
    ("sh: 1: /x/linux.uml: Permission denied\n", "noexec"),
    (
        "qemu-system-x86_64: -fsdev local,id=root: fsdev option is invalid\n",
        "QEMU gave up",
    ),
];

#[test]
fn each_death_is_known_by_the_words_that_go_with_it() {
    for (said, expected) in DEATHS {
        let what = cause(said).map_or("nothing", |cause| cause.what);
        assert!(what.contains(expected), "{said}: {what}");
    }
}

#[test]
fn no_cause_is_hidden_behind_another_one() {
    for known in CAUSES {
        let found = DEATHS
            .iter()
            .any(|(said, _)| cause(said).is_some_and(|cause| std::ptr::eq(cause, known)));
        assert!(found, "no death in the table has this cause: {known:?}");
    }
}

#[test]
fn an_unknown_death_and_the_words_of_the_command_are_explained_by_nothing() {
    assert!(cause("Aborted\n").is_none());
    assert!(
        cause("Kernel panic - not syncing: Attempted to kill init! exitcode=0x100\n").is_none()
    );
    assert_eq!(dump("tar: No space left on device\n"), "");
    assert_eq!(
        dump("hello\nkmsg_dump:\n<0>Bus error"),
        "kmsg_dump:\n<0>Bus error"
    );
}

fn here(root: bool, ipvlan: bool) -> Here {
    Here {
        cpu: "Some CPU".to_owned(),
        register_set: 11008,
        memory: (
            "/dev/shm".into(),
            Room {
                free: 64,
                exec: false,
            },
        ),
        root,
        ipvlan,
    }
}

#[test]
fn a_message_says_what_happened_then_the_last_words_then_what_to_try_in_order() {
    let registers = cause(DEATHS[0].0);
    for (cause, kernel, here, expected) in [
        (
            registers,
            Kernel::Uml,
            here(false, false),
            &[
                "did: user-mode Linux could not set",
                "its last words",
                "Some CPU, a register set of 11008 bytes",
                "64 MiB free in /dev/shm, which is mounted noexec",
                "not root",
                "EBBTIDE_UML_WHOLE_XSTATE=1",
                "`--qemu`",
                "as root in a kernel with ipvlan (`modprobe ipvlan`)",
            ][..],
        ),
        (
            None,
            Kernel::Old,
            here(true, true),
            &[
                "before the command did\n",
                "its last words",
                "this kernel has ipvlan",
                "without --qemu",
                "need no guest",
            ],
        ),
    ] {
        let text = message(cause, kernel, "its last words", &here);
        let mut rest = text.as_str();
        for part in expected {
            let place = rest.find(part);
            assert!(place.is_some(), "no {part:?} in its place in:\n{text}");
            rest = &rest[place.unwrap_or(0)..];
        }
    }
}

#[test]
fn another_cpu_is_told_at_once_what_remains() {
    assert!(guests_run_on("x86_64").is_ok());
    let text = guests_run_on("aarch64").expect_err("no guest").to_string();
    for part in ["aarch64", "x86-64", "modprobe ipvlan", "as root"] {
        assert!(text.contains(part), "no {part} in: {text}");
    }
}

#[test]
fn a_cpu_has_its_name_from_proc() {
    assert_eq!(cpu("processor\t: 0\nmodel name\t: AMD EPYC\n"), "AMD EPYC");
    assert_eq!(cpu("processor: 0\n"), "a CPU without a name");
}
