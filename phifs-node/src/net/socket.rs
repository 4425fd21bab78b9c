//! The port of this node, and the way in for one that was invited.

use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use phifs_core::causal::VersionVector;
use phifs_core::registry::{ADDRESSES_MAX, check_name};
use phifs_core::ssep::{Answer, Catch, Join, MemberEntries, Refusal, Request, Token};
use quinn::{Connection, Endpoint};
use tokio::runtime::Runtime;

use super::pipe::Incoming;
use super::tls::Identity;
use super::wire::{self, ANSWER_TIME_MAX, WireError};
use crate::failure::{Failure, Kind};
use crate::node_key::NodeSeed;

/// Where a node listens that was told nothing else.
pub const DEFAULT_LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 7447);

const WORKERS: usize = 2;
/// How long to wait for a node at one of its addresses.
pub const CONNECT_TIME_MAX: Duration = Duration::from_secs(5);

/// A bound port. Nobody is let in yet.
pub struct Socket {
    pub(super) runtime: Runtime,
    pub(super) endpoint: Endpoint,
    pub(super) identity: Identity,
    pub(super) address: SocketAddr,
}

impl Socket {
    pub fn bind(address: SocketAddr, seed: &NodeSeed) -> Result<Self, Failure> {
        let identity = Identity::new(seed).map_err(|error| Failure::plain(format!("the node key: {error}")))?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(WORKERS)
            .thread_name("net")
            .enable_all()
            .build()
            .map_err(|error| Failure::plain(format!("cannot start the threads of the network: {error}")))?;
        let bound = {
            let _context = runtime.enter();
            Endpoint::client(address).and_then(|endpoint| Ok((endpoint.local_addr()?, endpoint)))
        };
        let (address, endpoint) = bound.map_err(|error| {
            let kind = if error.kind() == std::io::ErrorKind::AddrInUse { Kind::InUse } else { Kind::Failed };
            Failure::new(kind, format!("cannot listen at {address} (UDP): {error}"))
                .hint("choose another address or port with --listen ADDR:PORT")
        })?;
        Ok(Self { runtime, endpoint, identity, address })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where others may find this node.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        reachable_at(self.address)
    }

    /// Asks to be let in.
    pub fn join(&self, token: &Token) -> Result<Admitted<'_>, Failure> {
        let join = Join { secret: token.secret, name: machine_name(), addresses: self.addresses() };
        self.runtime.block_on(async {
            let connection = connect(&self.endpoint, &self.identity, token).await?;
            let answer = wire::ask_one(&connection, &Request::Join(join), ANSWER_TIME_MAX).await;
            match answer.map_err(refused)? {
                Answer::Joined(members) => Ok(Admitted { socket: self, connection, members }),
                _ => Err(refused(WireError::Unexpected)),
            }
        })
    }
}

/// This node is a member now.
pub struct Admitted<'a> {
    socket: &'a Socket,
    connection: Connection,
    pub members: MemberEntries,
}

impl Admitted<'_> {
    /// All that the inviter has, for a store to be made of it.
    pub fn everything(&self) -> Result<impl Read + use<>, Failure> {
        let nothing = Catch { context: VersionVector::new(), known: Vec::new() };
        let asking = async {
            let mut answers = wire::ask(&self.connection, &Request::Catch(nothing)).await?;
            let answer = tokio::time::timeout(ANSWER_TIME_MAX, answers.next()).await;
            match answer.map_err(|_| WireError::Silent)?? {
                Answer::Stream => Ok(answers.stream),
                _ => Err(WireError::Unexpected),
            }
        };
        let stream = self.socket.runtime.block_on(asking).map_err(refused)?;
        Ok(Incoming::new(stream, self.socket.runtime.handle().clone()))
    }
}

async fn connect(endpoint: &Endpoint, identity: &Identity, token: &Token) -> Result<Connection, Failure> {
    let config = identity.client(token.inviter).map_err(Failure::plain)?;
    let mut failures = Vec::new();
    for address in &token.addresses {
        match dial(endpoint, &config, *address).await {
            Ok(connection) => return Ok(connection),
            Err(error) => failures.push(format!("\n  {address}: {error}")),
        }
    }
    Err(Failure::plain(format!("cannot reach the node that invited this one:{}", failures.concat())).hint(
        "see that its daemon is up, that UDP gets through to it, and that the invitation was made for this machine; \
         a node that expects nobody does not answer: make a new invitation there with `phifs invite`",
    ))
}

pub async fn dial(
    endpoint: &Endpoint,
    config: &quinn::ClientConfig,
    address: SocketAddr,
) -> Result<Connection, WireError> {
    // No name stands in a key; the library wants one all the same.
    let connecting = endpoint.connect_with(config.clone(), address, "phifs").map_err(wire::lost)?;
    tokio::time::timeout(CONNECT_TIME_MAX, connecting).await.map_err(|_| WireError::Silent)?.map_err(wire::lost)
}

fn refused(error: WireError) -> Failure {
    let failure = Failure::plain(format!("the node that invited this one: {error}"));
    match error {
        WireError::Refused { why: Refusal::BadInvitation, text } => {
            Failure::plain(format!("the invitation is not accepted: {text}"))
                .hint("make a new one with `phifs invite`, on a machine that has the volume")
        }
        WireError::Lost(_) => failure.hint("it may expect nobody: make a new invitation there with `phifs invite`"),
        _ => failure.hint("see its log"),
    }
}

/// Where others may find a node that listens at `address`.
pub fn reachable_at(address: SocketAddr) -> Vec<SocketAddr> {
    if !address.ip().is_unspecified() {
        return vec![address];
    }
    let interfaces = if_addrs::get_if_addrs().unwrap_or_else(|error| {
        tracing::warn!(%error, "cannot list the addresses of this machine");
        Vec::new()
    });
    let mut found: Vec<IpAddr> = interfaces.iter().map(if_addrs::Interface::ip).collect();
    // Bound to all addresses of IPv4 it does not hear IPv6. Those of a link alone mean nothing elsewhere.
    let is_link_local = |ip: &IpAddr| matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
    found.retain(|ip| (ip.is_ipv4() || address.is_ipv6()) && !is_link_local(ip));
    if found.iter().any(|ip| !ip.is_loopback()) {
        found.retain(|ip| !ip.is_loopback());
    }
    found.truncate(ADDRESSES_MAX);
    found.into_iter().map(|ip| SocketAddr::new(ip, address.port())).collect()
}

/// What this machine is called, as far as it can be shown.
pub fn machine_name() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    if check_name(&name).is_ok() { name } else { "unnamed".to_owned() }
}
