//! The port of this node, and the way in for one that was invited.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use phifs_core::identity::NodePublicKey;
use phifs_core::registry::{ADDRESSES_MAX, check_name};
use phifs_core::ssep::{Answer, Join, MemberEntries, Refusal, Request, Token};
use quinn::{Connection, Endpoint, EndpointConfig};
use rustix::net::sockopt::{set_socket_recv_buffer_size, set_socket_recv_buffer_size_force};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use super::tls::Identity;
use super::wire::{self, ANSWER_TIME_MAX, WireError};
use crate::failure::{Failure, Kind};
use crate::node_key::NodeSeed;

/// Where a node listens that was told nothing else.
pub const DEFAULT_LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 7447);

const WORKERS: usize = 2;
/// Without privileges no more than the system allows.
const RECEIVE_BYTES: usize = 4 << 20;
/// How long one address is tried before the next is tried as well.
const HEAD_START: Duration = Duration::from_millis(300);
/// How long to wait for a node at one of its addresses.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(5);

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
            endpoint(address).and_then(|endpoint| Ok((endpoint.local_addr()?, endpoint)))
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

    /// Who this node is.
    pub fn node(&self) -> NodePublicKey {
        self.identity.node
    }

    /// Where others may find this node.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        reachable_at(self.address)
    }

    /// Asks one who has let this node in, or has heard of it from others, who the members are.
    pub fn rejoin(&self, by: NodePublicKey, addresses: &[SocketAddr]) -> Option<Admitted> {
        let config = self.identity.client(by).ok()?;
        self.runtime.block_on(async {
            let connection = dial_any(&self.endpoint, &config, addresses).await.ok()?;
            let members = wire::ask_one(&connection, &Request::Members, ANSWER_TIME_MAX).await;
            match members.ok()? {
                Answer::Members(members) => Some(Admitted { by, connection, members }),
                _ => None,
            }
        })
    }

    /// Asks to be let in.
    pub fn join(&self, token: &Token) -> Result<Admitted, Failure> {
        let join = Join { secret: token.secret, name: machine_name(), addresses: self.addresses() };
        self.runtime.block_on(async {
            let connection = connect(&self.endpoint, &self.identity, token).await?;
            let answer = wire::ask_one(&connection, &Request::Join(join), ANSWER_TIME_MAX).await;
            match answer.map_err(refused)? {
                Answer::Joined(members) => Ok(Admitted { by: token.inviter, connection, members }),
                _ => Err(refused(WireError::Unexpected)),
            }
        })
    }
}

fn endpoint(address: SocketAddr) -> std::io::Result<Endpoint> {
    let socket = UdpSocket::bind(address)?;
    // What comes while the processor has other things to do would be thrown away, and sent again.
    if set_socket_recv_buffer_size_force(&socket, RECEIVE_BYTES).is_err() {
        set_socket_recv_buffer_size(&socket, RECEIVE_BYTES)?;
    }
    Endpoint::new(EndpointConfig::default(), None, socket, Arc::new(quinn::TokioRuntime))
}

/// This node is a member now.
pub struct Admitted {
    /// Who says so.
    pub by: NodePublicKey,
    pub(super) connection: Connection,
    pub members: MemberEntries,
}

async fn connect(endpoint: &Endpoint, identity: &Identity, token: &Token) -> Result<Connection, Failure> {
    let config = identity.client(token.inviter).map_err(Failure::plain)?;
    let failures = match dial_any(endpoint, &config, &token.addresses).await {
        Ok(connection) => return Ok(connection),
        Err(failures) => failures,
    };
    let failures: Vec<String> = failures.iter().map(|(address, error)| format!("\n  {address}: {error}")).collect();
    Err(Failure::plain(format!("cannot reach the node that invited this one:{}", failures.concat())).hint(
        "see that its daemon is up, that UDP gets through to it, and that the invitation was made for this machine; \
         a node that expects nobody does not answer: make a new invitation there with `phifs invite`",
    ))
}

/// Connects to a node at whichever of its addresses answers first. They are tried one after the other, and beside each
/// other where one takes long.
pub async fn dial_any(
    endpoint: &Endpoint,
    config: &quinn::ClientConfig,
    addresses: &[SocketAddr],
) -> Result<Connection, Vec<(SocketAddr, WireError)>> {
    let (mut tries, mut failures, mut left) = (JoinSet::new(), Vec::new(), addresses.iter().copied());
    loop {
        if let Some(address) = left.next() {
            let (endpoint, config) = (endpoint.clone(), config.clone());
            tries.spawn(async move { (address, dial(&endpoint, &config, address).await) });
        }
        tokio::select! {
            tried = tries.join_next() => match tried {
                Some(Ok((_, Ok(connection)))) => return Ok(connection),
                Some(Ok((address, Err(error)))) => failures.push((address, error)),
                Some(Err(error)) => tracing::error!(%error, "a connection was not made"),
                None => return Err(failures),
            },
            () = tokio::time::sleep(HEAD_START), if left.len() > 0 => {}
        }
    }
}

async fn dial(endpoint: &Endpoint, config: &quinn::ClientConfig, address: SocketAddr) -> Result<Connection, WireError> {
    check_route(address).map_err(wire::lost)?;
    // No name stands in a key; the library wants one all the same.
    let connecting = endpoint.connect_with(config.clone(), address, "phifs").map_err(wire::lost)?;
    tokio::time::timeout(CONNECT_TIME_MAX, connecting).await.map_err(|_| WireError::Silent)?.map_err(wire::lost)
}

/// What the kernel says to packets that it cannot send is not heard by those who wait for an answer.
fn check_route(address: SocketAddr) -> std::io::Result<()> {
    let any = if address.is_ipv4() { IpAddr::from(Ipv4Addr::UNSPECIFIED) } else { Ipv6Addr::UNSPECIFIED.into() };
    UdpSocket::bind((any, 0))?.connect(address)
}

pub(super) fn refused(error: WireError) -> Failure {
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
    let mut found = machine_addresses();
    // Bound to all addresses of IPv4 it does not hear IPv6. Those of a link alone mean nothing elsewhere.
    let is_link_local = |ip: &IpAddr| matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
    found.retain(|ip| (ip.is_ipv4() || address.is_ipv6()) && !is_link_local(ip));
    if found.iter().any(|ip| !ip.is_loopback()) {
        found.retain(|ip| !ip.is_loopback());
    }
    found.truncate(ADDRESSES_MAX);
    found.into_iter().map(|ip| SocketAddr::new(ip, address.port())).collect()
}

/// All addresses of this machine; nothing if they cannot be told.
pub fn machine_addresses() -> Vec<IpAddr> {
    let interfaces = if_addrs::get_if_addrs().unwrap_or_else(|error| {
        tracing::warn!(%error, "cannot list the addresses of this machine");
        Vec::new()
    });
    interfaces.iter().map(if_addrs::Interface::ip).collect()
}

/// What this machine is called, as far as it can be shown.
pub fn machine_name() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    if check_name(&name).is_ok() { name } else { "unnamed".to_owned() }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Instant;

    use phifs_core::identity::{NodeKey, NodePublicKey};

    use super::super::tls::Guard;
    use super::*;

    struct All(bool);

    impl Guard for All {
        fn lets_in(&self, _: NodePublicKey) -> bool {
            self.0
        }
    }

    fn socket(seed: u8) -> Socket {
        Socket::bind("127.0.0.1:0".parse().unwrap(), &NodeSeed([seed; 32])).unwrap()
    }

    /// One that lets everybody in, or nobody.
    fn server(lets_in: bool) -> Socket {
        let socket = socket(1);
        socket.endpoint.set_server_config(Some(socket.identity.server(Arc::new(All(lets_in))).unwrap()));
        let endpoint = socket.endpoint.clone();
        socket.runtime.spawn(async move {
            while let Some(incoming) = endpoint.accept().await {
                tokio::spawn(async move {
                    if let Ok(connection) = incoming.await {
                        connection.closed().await;
                    }
                });
            }
        });
        socket
    }

    fn dial_from(
        socket: &Socket,
        key: u8,
        addresses: &[SocketAddr],
    ) -> Result<Connection, Vec<(SocketAddr, WireError)>> {
        let config = socket.identity.client(NodeKey::from_seed(&[key; 32]).public()).unwrap();
        socket.runtime.block_on(dial_any(&socket.endpoint, &config, addresses))
    }

    #[test]
    fn the_address_that_answers_is_found_among_those_that_do_not() {
        let (there, here, began) = (server(true), socket(2), Instant::now());
        let silent = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let broadcast = "255.255.255.255:7447".parse().unwrap();
        dial_from(&here, 1, &[broadcast, silent, there.address]).unwrap();
        assert!(began.elapsed() < CONNECT_TIME_MAX);
        let failures = dial_from(&here, 1, &[]).unwrap_err();
        assert!(failures.is_empty());
    }

    #[test]
    fn an_address_to_which_nothing_can_be_sent_is_given_up_at_once() {
        let (here, began) = (socket(2), Instant::now());
        let failures = dial_from(&here, 1, &["255.255.255.255:7447".parse().unwrap()]).unwrap_err();
        assert!(matches!(&failures[..], [(_, WireError::Lost(_))]), "{failures:?}");
        assert!(began.elapsed() < CONNECT_TIME_MAX);
    }

    #[test]
    fn nobody_is_taken_for_somebody_else_and_nobody_unknown_gets_an_answer() {
        let (there, here) = (server(true), socket(2));
        assert!(dial_from(&here, 3, &[there.address]).is_err(), "another key than the one that was asked for");
        let closed = server(false);
        let ended = match dial_from(&here, 1, &[closed.address]) {
            // It is told only after its side of the handshake.
            Ok(connection) => here.runtime.block_on(connection.closed()).to_string(),
            Err(failures) => format!("{failures:?}"),
        };
        assert!(ended.contains("ApplicationVerificationFailure"), "{ended}");
    }
}
