//! Where others may find this node, also after its machine was given other addresses.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use super::Shared;
use super::socket::{machine_name, reachable_at};

/// How often it is looked.
const LOOK: Duration = Duration::from_secs(2);

/// Tells the members where this node is found, whenever that changes. It was told already once.
pub async fn keep_announcing(shared: Arc<Shared>, listen: SocketAddr, mut told: Vec<SocketAddr>) {
    let mut seen = told.clone();
    let set = |addresses: &[SocketAddr]| addresses.iter().copied().collect::<BTreeSet<_>>();
    while !shared.is_stopping() {
        sleep(LOOK).await;
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
