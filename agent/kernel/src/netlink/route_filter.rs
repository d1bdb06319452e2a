//! Filters the route events of a notification socket: a classic BPF program, which the kernel runs before it queues
//! one.
//!
//! With BGP hundreds of thousands of routes come and go, and none of them concerns the agent. Without the filter each
//! is a message to read, and a burst overflows the socket: then anything may have changed, and everything is read anew.

use std::{
    collections::BTreeSet,
    io,
    os::fd::{AsFd, AsRawFd as _, OwnedFd},
};

use nix::libc::{self, sock_filter, sock_fprog};

use super::model::{LOCAL_TABLE, PROTOCOL};

/// `RTM_NEWROUTE` and `RTM_DELROUTE` (include/uapi/linux/rtnetlink.h).
const NEW_ROUTE: u16 = 24;
const DELETED_ROUTE: u16 = 25;
/// `RTA_TABLE`.
const TABLE: u32 = 15;
/// The offsets of a message's type (`struct nlmsghdr`), of a route's destination prefix length, table and protocol
/// (`struct rtmsg`), and of its attributes.
const AT_TYPE: u32 = 4;
const AT_LENGTH: u32 = 17;
const AT_TABLE: u32 = 20;
const AT_PROTOCOL: u32 = 21;
/// `RTPROT_KERNEL`.
const BY_KERNEL: u32 = 2;
const AT_ATTRIBUTES: u32 = 28;
/// The kernel searches the attribute of type X from the byte A on (`SKF_AD_NLATTR`,
/// Documentation/networking/filter.rst).
const FIND_ATTRIBUTE: u32 = (libc::SKF_AD_OFF + libc::SKF_AD_NLATTR) as u32;
/// The most tables in a program: each takes two instructions, and `BPF_MAXINSNS` limits these.
const MOST_TABLES: usize = 1000;

/// The verdicts: the whole message, or nothing of it.
const ACCEPT: u32 = u32::MAX;
const DROP: u32 = 0;

/// The filter of one socket's route events. Events of all other objects pass in any case.
#[derive(Debug)]
pub struct RouteFilter(OwnedFd);

impl RouteFilter {
    pub(super) fn of(socket: impl AsFd) -> io::Result<Self> {
        Ok(Self(socket.as_fd().try_clone_to_owned()?))
    }

    /// Limits the socket's route events to added and removed default routes, those of the table `local` that are not the
    /// kernel's own, removed routes of Ebbtide's, and removed foreign routes in `tables`. `None`, or more tables than a
    /// program can have: in all tables.
    ///
    /// # Errors
    /// If the kernel refuses the program: then the filter is unchanged.
    pub fn only(&self, tables: Option<&BTreeSet<u32>>) -> io::Result<()> {
        let mut program = program(tables.filter(|tables| tables.len() <= MOST_TABLES));
        let argument = sock_fprog {
            len: u16::try_from(program.len()).map_err(io::Error::other)?,
            filter: program.as_mut_ptr(),
        };
        // SAFETY: the kernel reads a `sock_fprog` of this length, and as many instructions as it says from where it
        // points to; both outlive the call, and the kernel keeps a copy.
        let result = unsafe {
            libc::setsockopt(
                self.0.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_ATTACH_FILTER,
                (&raw const argument).cast(),
                size_of::<sock_fprog>() as libc::socklen_t,
            )
        };
        match result {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

fn instruction(code: u32, k: u32) -> sock_filter {
    jump(code, k, 0, 0)
}

/// Makes a jump that skips `jt` instructions if the comparison holds, and `jf` if not.
fn jump(code: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
    let code = code as u16;
    sock_filter { code, jt, jf, k }
}

fn program(tables: Option<&BTreeSet<u32>>) -> Vec<sock_filter> {
    use libc::{BPF_ABS, BPF_B, BPF_H, BPF_IMM, BPF_IND, BPF_K, BPF_LD, BPF_LDX, BPF_RET, BPF_W};
    const EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | BPF_K;
    let end = |verdict| instruction(BPF_RET | BPF_K, verdict);
    // Loads are big-endian, and netlink has the machine's byte order.
    let kind = |kind: u16| u32::from(kind.to_be());
    let mut program = vec![
        instruction(BPF_LD | BPF_H | BPF_ABS, AT_TYPE),
        jump(EQUAL, kind(NEW_ROUTE), 2, 0),
        jump(EQUAL, kind(DELETED_ROUTE), 9, 0),
        end(ACCEPT),
        // An added route: accept a default route, or a local one that is not the kernel's.
        instruction(BPF_LD | BPF_B | BPF_ABS, AT_LENGTH),
        jump(EQUAL, 0, 4, 0),
        instruction(BPF_LD | BPF_B | BPF_ABS, AT_TABLE),
        jump(EQUAL, LOCAL_TABLE, 0, 3),
        instruction(BPF_LD | BPF_B | BPF_ABS, AT_PROTOCOL),
        jump(EQUAL, BY_KERNEL, 1, 0),
        end(ACCEPT),
        end(DROP),
        // A removed route: accept a default route, Ebbtide's, or a local one that is not the kernel's.
        instruction(BPF_LD | BPF_B | BPF_ABS, AT_LENGTH),
        jump(EQUAL, 0, 5, 0),
        instruction(BPF_LD | BPF_B | BPF_ABS, AT_PROTOCOL),
        jump(EQUAL, u32::from(PROTOCOL), 3, 0),
        jump(EQUAL, BY_KERNEL, 3, 0),
        instruction(BPF_LD | BPF_B | BPF_ABS, AT_TABLE),
        jump(EQUAL, LOCAL_TABLE, 0, 1),
        end(ACCEPT),
    ];
    let Some(tables) = tables else {
        program.push(end(ACCEPT));
        return program;
    };
    program.extend([
        instruction(BPF_LDX | BPF_W | BPF_IMM, TABLE),
        instruction(BPF_LD | BPF_W | BPF_IMM, AT_ATTRIBUTES),
        instruction(BPF_LD | BPF_W | BPF_ABS, FIND_ATTRIBUTE),
        // Without a table: accept.
        jump(EQUAL, 0, 0, 1),
        end(ACCEPT),
        instruction(libc::BPF_MISC | libc::BPF_TAX, 0),
        // The value follows the attribute's header.
        instruction(BPF_LD | BPF_W | BPF_IND, 4),
    ]);
    for table in tables {
        program.extend([jump(EQUAL, table.to_be(), 0, 1), end(ACCEPT)]);
    }
    program.push(end(DROP));
    program
}
