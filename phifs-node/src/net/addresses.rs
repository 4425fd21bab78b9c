//! Where others may find this node, also after its machine was given other addresses.
//!
//! A connection follows the machine that made it to another address by itself (QUIC migrates). It does not follow the one
//! that was called: its packets are still to come from the old address, and no host sends such. Its connections are
//! given up as soon as that is seen, for this node to call back.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use super::Shared;
use super::socket::{machine_addresses, machine_name, reachable_at};

/// How often it is looked. Two machines that move, one soon after the other, find each other only if the second one has
/// heard of the first.
const LOOK: Duration = Duration::from_secs(1);

/// Tells the members where this node is found, whenever that changes. It was told already once.
pub async fn keep_announcing(shared: Arc<Shared>, listen: SocketAddr, mut told: Vec<SocketAddr>) {
    let mut seen = told.clone();
    let set = |addresses: &[SocketAddr]| addresses.iter().copied().collect::<BTreeSet<_>>();
    while !shared.is_stopping() {
        sleep(LOOK).await;
        hang_up(&shared, &machine_addresses());
        let now = reachable_at(listen);
        if set(&now) != set(&seen) {
            seen.clone_from(&now);
            shared.raise_hope();
        }
        // Without any there is nobody to tell.
        if now.is_empty() || set(&now) == set(&told) {
            continue;
        }
        let addresses = now.clone();
        match shared.blocking(move |engine| engine.announce(&machine_name(), &addresses)).await {
            Ok(()) => {
                tracing::info!(addresses = ?now, "this machine has other addresses now");
                told = now;
            }
            Err(error) => tracing::error!(%error, "cannot tell the other addresses of this machine"),
        }
    }
}

/// Gives up connections that end at addresses which this machine has no more.
fn hang_up(shared: &Shared, addresses: &[IpAddr]) {
    let peers: Vec<_> = shared.peers.lock().values().cloned().collect();
    for peer in peers {
        let connections: Vec<_> = {
            let state = peer.state.lock();
            state.connection.iter().chain(&state.served).cloned().collect()
        };
        for connection in connections.iter().filter(|connection| connection.close_reason().is_none()) {
            // Those that were made here have none.
            if let Some(ip) = connection.local_ip()
                && !addresses.is_empty()
                && !addresses.contains(&ip.to_canonical())
            {
                tracing::info!(node = %peer.key, %ip, "the address is gone at which a node had called; calling back");
                connection.close(0_u8.into(), b"another address");
            }
        }
    }
}
