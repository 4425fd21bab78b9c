//! What is asked of the daemon about this node and the other members.

use std::sync::Arc;
use std::time::Duration;

use phifs_core::identity::NodePublicKey;

use super::{Daemon, load_key};
use crate::control::Progress;
use crate::failure::{Failure, Kind};
use crate::hex;
use crate::net::{self, Net, Socket};
use crate::report::{Cluster, Invitation, Left, Member, Standing};

/// A shorter piece of a key may be a word.
const KEY_DIGITS_MIN: usize = 8;

impl Daemon {
    pub(super) fn invite(&self, role: String, zone: String, lasts: Duration) -> Result<Invitation, Failure> {
        self.check_member()?;
        let mut net = self.net.lock();
        let net = match &*net {
            Some(net) => net.clone(),
            None => {
                let socket = Socket::bind(net::DEFAULT_LISTEN, &load_key(&self.store)?)?;
                net.insert(Arc::new(Net::start(socket, self.engine.clone())?)).clone()
            }
        };
        self.engine.invite(role, zone, lasts, net.addresses())
    }

    fn check_member(&self) -> Result<(), Failure> {
        if self.engine.standing()? == Standing::Former {
            return Err(Failure::plain("this machine is no member any more").hint(
                "to come back, get an invitation from a machine that is one, and here: phifs down, then phifs join",
            ));
        }
        Ok(())
    }

    pub(super) fn members(&self) -> Result<Vec<Member>, Failure> {
        if self.engine.standing()? == Standing::Former {
            return Ok(Vec::new());
        }
        let net = self.net.lock().clone();
        net.map_or_else(|| Ok(Vec::new()), |net| net.members())
    }

    pub(super) fn cluster(&self) -> Cluster {
        let standing = self.engine.standing().unwrap_or_else(|error| {
            tracing::error!(%error, "cannot look up whether this machine is a member");
            Standing::default()
        });
        let members = self.members().unwrap_or_default();
        let (own, others): (Vec<&Member>, Vec<&Member>) = members.iter().partition(|member| member.this_node);
        let connected: Vec<_> = others.iter().map(|member| &member.standing).filter(|other| other.connected).collect();
        let under_replicated_bytes = if members.len() > 1 {
            self.engine.under_replicated_bytes().unwrap_or_else(|error| {
                tracing::error!(%error, "cannot look up what is on one machine only");
                0
            })
        } else {
            0
        };
        let of_own = own.first().map(|own| &own.standing);
        let full = of_own.and_then(|own| own.trouble.as_ref()).map(|_| "the disk of this machine is full".to_owned());
        Cluster {
            standing,
            members: members.len() as u64,
            connected: connected.len() as u64,
            under_replicated_bytes,
            missing_operations: of_own.and_then(|own| own.behind).unwrap_or_default(),
            to_come: self.net.lock().as_ref().and_then(|net| net.to_come()),
            held_up: full.or_else(|| connected.iter().find_map(|other| other.trouble.clone())),
            divergence: self.engine.divergence(),
            behind: connected.iter().filter_map(|other| other.behind).max().unwrap_or_default(),
        }
    }

    pub(super) fn remove_member(&self, wanted: &str) -> Result<Member, Failure> {
        let mut member = find(self.members()?, wanted)?;
        if member.this_node {
            return Err(Failure::new(Kind::Usage, "this is the machine itself").hint("phifs leave"));
        }
        let key = hex::decode(&member.key).and_then(|key| key.try_into().ok()).map(NodePublicKey);
        let key = key.ok_or_else(|| Failure::plain("internal error: the key of a member is none"))?;
        if !self.engine.remove_member(key)? {
            return Err(Failure::plain(format!("{} is no member any more already", member.name)));
        }
        if let Some(net) = &*self.net.lock() {
            net.members_changed();
        }
        member.standing.connected = false;
        Ok(member)
    }

    pub(super) fn leave(&self, force: bool, progress: &mut dyn FnMut(Progress)) -> Result<Left, Failure> {
        self.check_member()?;
        let members = self.members()?;
        let net = self.net.lock().clone();
        let (Some(net), true) = (net, members.len() > 1) else {
            return Err(Failure::plain("no other machine has the volume, so there is nothing to leave")
                .hint("to stop the daemon: phifs down"));
        };
        if !force {
            net.drain(progress)?;
        }
        progress(Progress::step("telling the others"));
        let heard = net.leave()?;
        self.stop_net();
        self.engine.listen_at(None)?;
        let own = members.into_iter().find(|member| member.this_node);
        Ok(Left { name: own.map(|own| own.name).unwrap_or_default(), heard })
    }

    pub(super) fn stop_net(&self) {
        let net = self.net.lock().take();
        if let Some(net) = net {
            net.stop();
        }
    }
}

/// The member with this name, or with a key that begins so.
pub(super) fn find(members: Vec<Member>, wanted: &str) -> Result<Member, Failure> {
    let by_name = |member: &Member| member.name == wanted;
    let by_key =
        |member: &Member| wanted.len() >= KEY_DIGITS_MIN && member.key.starts_with(&wanted.to_ascii_lowercase());
    let any_by_name = members.iter().any(by_name);
    let is_it = |member: &Member| if any_by_name { by_name(member) } else { by_key(member) };
    let (found, others): (Vec<Member>, Vec<Member>) = members.into_iter().partition(is_it);
    let list = |members: &[Member]| {
        let lines = members.iter().map(|member| format!("\n  {} {}", member.key, member.name));
        lines.collect::<String>()
    };
    match &found[..] {
        [member] => Ok(member.clone()),
        [] => Err(Failure::new(Kind::Usage, format!("no member is called {wanted:?}; there are:{}", list(&others)))),
        _ => Err(Failure::new(Kind::Usage, format!("several members are called {wanted:?}:{}", list(&found)))
            .hint("give the first digits of the key instead, at least 8")),
    }
}
