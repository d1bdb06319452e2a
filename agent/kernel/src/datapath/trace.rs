//! The programs that tell what they do, for as long as somebody traces.

use std::net::IpAddr;

use aya::{
    Ebpf, include_bytes_aligned,
    maps::{Array, MapData, RingBuf},
};
use ebbtide_layout::{TRACED_ADDRESSES, TraceEvent, TraceFilter, Traced};

use super::{Datapath, Error, Programs, key, map_error};

/// The object that `cargo xtask build-ebpf` made.
static OBJECT: &[u8] = include_bytes_aligned!(env!("EBBTIDE_TRACE_OBJECT"));

/// Which packets are traced.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TraceRequest {
    /// The pod's addresses.
    pub pod: Vec<IpAddr>,
    /// The other side, if it matters.
    pub peer: Option<IpAddr>,
    /// A port of either side, if it matters.
    pub port: Option<u16>,
    /// The protocol, if it matters.
    pub protocol: Option<u8>,
    /// When it ends, in nanoseconds of `CLOCK_BOOTTIME`: then the programs say nothing more, even
    /// if nobody takes them off.
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

/// Loaded programs that tell what they do, and what they told.
pub struct Tracer {
    /// Under the others' names.
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
    /// Loads the programs that tell what they do, with the maps of the others. They do nothing
    /// until they are attached in the others' place.
    ///
    /// # Errors
    /// When the kernel refuses a map or program (ring buffers are there since 5.8).
    pub fn tracer(&self, wish: &TraceRequest) -> Result<Tracer, Error> {
        let mut object = self.setup.loader().load(OBJECT)?;
        let programs = Programs::load(&mut object, Traced::ALL.map(Traced::name))?;
        let map = object.map_mut("TRACE").ok_or(Error::Lacks("map TRACE"))?;
        let mut filter: Array<_, TraceFilter> =
            Array::try_from(map).map_err(|e| map_error("open the map TRACE", e))?;
        filter
            .set(0, wish.filter(), 0)
            .map_err(|e| map_error("say what to trace", e))?;
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
    /// How many of a pod's addresses can be told at the NICs.
    pub const ADDRESSES: usize = TRACED_ADDRESSES;

    /// What was told since the last time, oldest first.
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
