//! Loads the tracing programs and reads their events, for as long as a trace runs.

use std::net::IpAddr;

use aya::{
    Ebpf, include_bytes_aligned,
    maps::{Array, MapData, RingBuf},
};
use ebbtide_layout::{TRACED_ADDRESSES, TraceEvent, TraceFilter, Traced};

use super::{Datapath, Error, Programs, error::map_error, key};

/// The eBPF object built by `cargo xtask build-ebpf`.
static OBJECT: &[u8] = include_bytes_aligned!(env!("EBBTIDE_TRACE_OBJECT"));

/// The packets to trace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TraceRequest {
    /// The pod's addresses.
    pub pod: Vec<IpAddr>,
    /// The address of the other side; any if `None`.
    pub peer: Option<IpAddr>,
    /// A port of either side; any if `None`.
    pub port: Option<u16>,
    /// The IP protocol; any if `None`.
    pub protocol: Option<u8>,
    /// When the trace ends, in nanoseconds of `CLOCK_BOOTTIME`: then the programs report nothing more, even if they are
    /// still attached.
    pub until: u64,
}

impl TraceRequest {
    fn filter(&self) -> TraceFilter {
        let mut filter = TraceFilter {
            until: self.until,
            peer: self.peer.map_or(ebbtide_layout::ANY, key),
            port: self.port.unwrap_or(0).to_be_bytes(),
            protocol: self.protocol.unwrap_or(0),
            ..TraceFilter::default()
        };
        for (place, address) in filter.pod.iter_mut().zip(&self.pod) {
            *place = key(*address);
        }
        filter
    }
}

/// The loaded tracing programs, and their events.
pub struct Tracer {
    /// The programs, under the names of those that they replace.
    pub programs: Programs,
    events: RingBuf<MapData>,
    _object: Ebpf,
}

impl std::fmt::Debug for Tracer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tracer").finish_non_exhaustive()
    }
}

impl Datapath {
    /// Loads the tracing programs, with the maps of the regular ones. They do nothing until they replace those at their
    /// hooks.
    ///
    /// # Errors
    /// If the kernel refuses a map or program (ring buffers require 5.8).
    pub fn tracer(&self, wish: &TraceRequest) -> Result<Tracer, Error> {
        let mut object = self.setup.loader().load(OBJECT)?;
        let programs = Programs::load(&mut object, Traced::ALL.map(Traced::name))?;
        let map = object.map_mut("TRACE").ok_or(Error::Lacks("map TRACE"))?;
        let mut filter: Array<_, TraceFilter> =
            Array::try_from(map).map_err(|e| map_error("open the map TRACE", e))?;
        filter
            .set(0, wish.filter(), 0)
            .map_err(|e| map_error("write the filter of the trace", e))?;
        let events = object
            .take_map("EVENTS")
            .ok_or(Error::Lacks("map EVENTS"))?;
        let events = RingBuf::try_from(events).map_err(|e| map_error("open the map EVENTS", e))?;
        Ok(Tracer {
            programs,
            events,
            _object: object,
        })
    }
}

impl Tracer {
    /// The number of a pod's addresses that can be traced at the NICs.
    pub const ADDRESSES: usize = TRACED_ADDRESSES;

    /// Returns the events since the last call, oldest first.
    pub fn events(&mut self) -> Vec<TraceEvent> {
        let mut events = Vec::new();
        while let Some(item) = self.events.next() {
            if item.len() >= size_of::<TraceEvent>() {
                // SAFETY: the bytes are as many as the event has, any of them is valid for it
                // (aya::Pod), and the read does not ask for alignment.
                events.push(unsafe { item.as_ptr().cast::<TraceEvent>().read_unaligned() });
            }
        }
        events
    }
}
