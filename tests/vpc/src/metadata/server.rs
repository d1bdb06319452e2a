//! The HTTP server: who asks, in which dialect, and what the knobs make of the answer.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd as _, OwnedFd},
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use http_body_util::Full;
use hyper::{
    Response, StatusCode,
    body::{Bytes, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use ipnet::IpNet;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};

use super::{
    Cloud, Does, Knobs, Listing, SHARED, alibaba, aws, azure,
    exchange::{Asked, Reply, query},
    gcp,
    log::{Log, Request},
    tencent,
    tokens::Tokens,
    told::{Told, ToldNic},
};
use crate::{
    assigned::{Assigned, Late},
    plan::{Family, Plan},
};

/// The TTL of answers, unless a knob says another one: Linux' default.
const TTL: u8 = 64;

/// All that requests have in common.
#[derive(Debug)]
pub(super) struct Shared {
    plan: Plan,
    assigned: Arc<Assigned>,
    knobs: Mutex<BTreeMap<String, Knobs>>,
    tokens: Tokens,
    log: Log,
}

/// A connection, and who is behind it.
#[derive(Debug)]
struct Connection {
    /// The connection's socket, for its settings.
    socket: OwnedFd,
    node: String,
    peer: SocketAddr,
    /// The address that was asked.
    local: SocketAddr,
}

/// Serves connections as long as the runtime lives.
pub(super) async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        // A connection that ended before it was accepted is no reason to stop.
        let Ok((stream, peer)) = listener.accept().await else {
            continue;
        };
        // To an address that no NIC has, there is no service: the connection is closed.
        if let Some(node) = shared.node_of(peer.ip()) {
            tokio::spawn(converse(stream, peer, node, Arc::clone(&shared)));
        }
    }
}

async fn converse(stream: TcpStream, peer: SocketAddr, node: String, shared: Arc<Shared>) {
    let (Ok(socket), Ok(local)) = (stream.as_fd().try_clone_to_owned(), stream.local_addr()) else {
        return;
    };
    let connection = Arc::new(Connection {
        socket,
        node,
        peer,
        local,
    });
    let service = service_fn(|request| {
        let (shared, connection) = (Arc::clone(&shared), Arc::clone(&connection));
        async move { Ok::<_, Infallible>(shared.answer(&connection, request).await) }
    });
    // If it breaks off, the client reports what it misses.
    let _ = http1::Builder::new()
        .title_case_headers(true)
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

impl Shared {
    pub(super) fn new(plan: &Plan, assigned: Arc<Assigned>) -> Self {
        let knobs = plan.nodes.iter();
        Self {
            knobs: Mutex::new(
                knobs
                    .map(|node| (node.name.clone(), Knobs::default()))
                    .collect(),
            ),
            plan: plan.clone(),
            assigned,
            tokens: Tokens::default(),
            log: Log::default(),
        }
    }

    pub(super) fn tokens(&self) -> &Tokens {
        &self.tokens
    }

    pub(super) fn log(&self) -> &Log {
        &self.log
    }

    /// Turns knobs, and lets those look again who wait for changes.
    pub(super) fn turn(&self, turn: impl FnOnce(&mut BTreeMap<String, Knobs>)) {
        turn(&mut self.knobs.lock().unwrap_or_else(PoisonError::into_inner));
        self.assigned.wake();
    }

    /// Does something with a node's knobs.
    fn with<T>(&self, node: &str, work: impl FnOnce(&mut Knobs) -> T) -> T {
        let mut all = self.knobs.lock().unwrap_or_else(PoisonError::into_inner);
        work(all.entry(node.to_owned()).or_default())
    }

    fn node_of(&self, address: IpAddr) -> Option<String> {
        let address = address.to_canonical();
        let primary = self.plan.nics().find(|nic| {
            Family::BOTH
                .iter()
                .any(|family| nic.primary(*family) == address)
        });
        primary
            .map(|nic| nic.node.clone())
            .or_else(|| self.assigned.node_of(address))
    }

    async fn answer(
        &self,
        connection: &Connection,
        request: hyper::Request<Incoming>,
    ) -> Response<Full<Bytes>> {
        let uri = request.uri();
        let path = match uri.query() {
            Some(query) => format!("{}?{query}", uri.path()),
            None => uri.path().to_owned(),
        };
        let asked = Asked {
            method: request.method().clone(),
            path: uri.path().to_owned(),
            query: query(uri.query().unwrap_or_default()),
            headers: request.headers().clone(),
            source: connection.peer.ip(),
        };
        let node = connection.node.as_str();
        let (knobs, strike) = self.with(node, |knobs| {
            let strike = knobs.strike(&path);
            (knobs.clone(), strike)
        });
        let cloud = cloud_of(connection.local.ip(), &asked);
        let cloud = cloud.filter(|cloud| knobs.speaks.contains(cloud));
        let (number, before) = self.log.add(Request {
            at: Instant::now(),
            node: node.to_owned(),
            source: connection.peer,
            cloud,
            method: asked.method.to_string(),
            path: path.clone(),
            status: None,
        });
        let socket = SockRef::from(&connection.socket);
        let ttl = u32::from(knobs.hop_limit.unwrap_or(TTL));
        // It fails for a connection that has ended.
        let _ = match connection.local.ip() {
            IpAddr::V4(_) => socket.set_ttl_v4(ttl),
            IpAddr::V6(_) => socket.set_unicast_hops_v6(ttl),
        };
        tokio::time::sleep(knobs.delay).await;
        let reply = match strike {
            Some(Does::Hang) => std::future::pending().await,
            Some(Does::Status(status)) => Reply::failure(status),
            Some(Does::Empty) => Reply::text(200, ""),
            Some(Does::Garbage) => Reply {
                body: (0_u8..=255).rev().collect(),
                ..Reply::text(200, "")
            },
            does => {
                let mut reply = self.true_reply(cloud, &asked, node, before).await;
                match does {
                    Some(Does::Half) => reply.body.truncate(reply.body.len() / 2),
                    Some(Does::Endless) => reply.body.resize(reply.body.len() + (1 << 20), b'a'),
                    _ => {}
                }
                reply
            }
        };
        self.with(node, |knobs| knobs.answered(&path));
        self.log.answered(number, reply.status);
        response(reply)
    }

    /// Returns the reply without faults, when it is time for it.
    async fn true_reply(
        &self,
        cloud: Option<Cloud>,
        asked: &Asked,
        node: &str,
        number: usize,
    ) -> Reply {
        let Some(cloud) = cloud else {
            return Reply::failure(404);
        };
        let mut wait = match cloud {
            Cloud::Gcp => gcp::wait(asked),
            _ => None,
        };
        let began = Instant::now();
        loop {
            // Before the look at the state, so that no change after it is missed.
            let mut changed = self.assigned.subscribe();
            let knobs = self.with(node, |knobs| knobs.clone());
            let told = self.told(node, &knobs, knobs.moment(number));
            let reply = match cloud {
                Cloud::Aws => aws::answer(asked, &told, &self.tokens, &knobs),
                Cloud::Alibaba => alibaba::answer(asked, &told, &self.tokens, &knobs),
                Cloud::Azure if !azure::knows(asked, &told) => std::future::pending().await,
                Cloud::Azure => {
                    let count = self.log.in_the_last_second(node, cloud);
                    azure::answer(asked, &told, count, &knobs)
                }
                Cloud::Gcp => gcp::answer(asked, &told),
                Cloud::Tencent => tencent::answer(asked, &told),
            };
            let (Some(wait), Some(etag)) = (&mut wait, gcp::etag(&reply)) else {
                return reply;
            };
            let known = wait.etag.get_or_insert_with(|| etag.to_owned());
            let limit = wait.limit.map(|limit| began + limit);
            let now = Instant::now();
            if known != etag || limit.is_some_and(|limit| limit <= now) {
                return reply;
            }
            let told_later = self.assigned.next_change(now, late(&knobs));
            let next = limit.into_iter().chain(told_later).min();
            tokio::select! {
                // An error means that there is no VPC any more.
                _ = changed.changed() => {}
                () = until(next) => {}
            }
        }
    }

    fn told(&self, node: &str, knobs: &Knobs, at: Instant) -> Told {
        let nics = self.plan.node(node).map(|node| node.nics.as_slice());
        let mut nics: Vec<ToldNic> = (0..)
            .zip(nics.unwrap_or_default())
            .filter(|(_, nic)| knobs.nics.get(&nic.name) != Some(&Listing::Hidden))
            .map(|(number, nic)| ToldNic {
                nic: nic.clone(),
                number,
                blocks: self.assigned.told(nic, at, late(knobs)),
                id: knobs.ids.get(&nic.name).cloned(),
                is_bare: knobs.nics.get(&nic.name) == Some(&Listing::Bare),
            })
            .collect();
        if knobs.reversed {
            nics.reverse();
        }
        let subnets: BTreeSet<IpNet> = self
            .plan
            .nics()
            .flat_map(|nic| Family::BOTH.map(|family| nic.subnet(family).primary.trunc()))
            .collect();
        Told {
            node: node.to_owned(),
            nics,
            subnets: subnets.into_iter().collect(),
            mtu: self.plan.mtu,
        }
    }
}

/// Returns the cloud whose dialect a request is in: by the address that it was sent to, and the path.
fn cloud_of(local: IpAddr, asked: &Asked) -> Option<Cloud> {
    let own = |cloud: Cloud| cloud.address().ip() == local;
    if local != SHARED {
        return [Cloud::Alibaba, Cloud::Tencent]
            .into_iter()
            .find(|cloud| own(*cloud))
            .or(Some(Cloud::Aws));
    }
    match asked.parts().first() {
        Some(&"metadata") => Some(Cloud::Azure),
        Some(&"computeMetadata") => Some(Cloud::Gcp),
        None if asked.header("metadata-flavor").is_some() => Some(Cloud::Gcp),
        _ => Some(Cloud::Aws),
    }
}

fn late(knobs: &Knobs) -> Late {
    Late {
        lag: knobs.lag,
        ghost: knobs.ghost,
    }
}

async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment.into()).await,
        None => std::future::pending().await,
    }
}

fn response(reply: Reply) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(reply.body)));
    *response.status_mut() =
        StatusCode::from_u16(reply.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    for (name, value) in reply.headers {
        // All values are our own text.
        if let Ok(value) = value.try_into() {
            response.headers_mut().insert(name, value);
        }
    }
    response
}
