//! Where the parts of a control plane listen.

use std::net::{Ipv4Addr, TcpListener};

use anyhow::{Context as _, Result, bail};

#[derive(Clone, Copy, Debug)]
pub(super) struct Ports {
    pub(super) api: u16,
    pub(super) etcd: u16,
    pub(super) etcd_peer: u16,
}

impl Ports {
    pub(super) fn choose(in_own_network: bool) -> Result<Self> {
        if in_own_network {
            // Nobody else is there.
            return Ok(Self {
                api: 6443,
                etcd: 2379,
                etcd_peer: 2380,
            });
        }
        let free = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
        // All are held until all are chosen, so they differ.
        let held = [free(), free(), free()];
        let mut ports = held.iter().map(|listener| match listener {
            Ok(listener) => Ok(listener.local_addr()?.port()),
            Err(error) => bail!("looking for a free port: {error}"),
        });
        let mut next = || ports.next().context("three ports")?;
        Ok(Self {
            api: next()?,
            etcd: next()?,
            etcd_peer: next()?,
        })
    }
}
