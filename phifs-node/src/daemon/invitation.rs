//! STORE/joining: the invitation that a store is being made by, and where the members are found. With it `phifs up` goes on
//! with a join that broke off, also if the one who has invited is gone.
//!
//! ```text
//! phifs-joining 1
//! token phi1-..
//! member <key in hexadecimal> <address> <address> ..
//! ```

use std::fs;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;

use phifs_core::identity::NodePublicKey;
use phifs_core::ssep::Token;

use crate::failure::Failure;
use crate::hex;
use crate::show;
use crate::store_dir::StoreDir;

const FIRST_LINE: &str = "phifs-joining 1";

pub struct Invitation {
    pub token: Token,
    /// What is known of the members since the node was let in.
    pub members: Vec<(NodePublicKey, Vec<SocketAddr>)>,
}

impl Invitation {
    pub fn new(token: Token) -> Self {
        Self { token, members: Vec::new() }
    }

    /// The one that was remembered.
    pub fn load(store: &StoreDir) -> Result<Option<Self>, Failure> {
        let path = path(store, "");
        let text = match fs::read_to_string(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Failure::plain(format!("cannot read {}: {error}", show::path(&path)))),
            Ok(text) => text,
        };
        let damaged = || {
            Failure::plain(format!("{} is damaged", show::path(&path)))
                .hint("delete it, and join anew with another invitation")
        };
        parse(&text).ok_or_else(damaged).map(Some)
    }

    pub fn remember(&self, store: &StoreDir) -> Result<(), Failure> {
        let (new, path) = (path(store, ".new"), path(store, ""));
        let write = || {
            let mut options = fs::OpenOptions::new();
            let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&new)?;
            file.write_all(self.to_text().as_bytes())?;
            file.sync_all()?;
            fs::rename(&new, &path)?;
            fs::File::open(store.path())?.sync_all()
        };
        write().map_err(|error| Failure::plain(format!("cannot write {}: {error}", show::path(&path))))
    }

    /// The volume is here.
    pub fn forget(store: &StoreDir) -> Result<(), Failure> {
        let path = path(store, "");
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Failure::plain(format!("cannot remove {}: {error}", show::path(&path))))
            }
            _ => Ok(()),
        }
    }

    fn to_text(&self) -> String {
        let member = |(key, addresses): &(NodePublicKey, Vec<SocketAddr>)| {
            let addresses: String = addresses.iter().map(|address| format!(" {address}")).collect();
            format!("member {}{addresses}\n", hex::encode(&key.0))
        };
        let members: String = self.members.iter().map(member).collect();
        format!("{FIRST_LINE}\ntoken {}\n{members}", self.token)
    }
}

fn path(store: &StoreDir, suffix: &str) -> PathBuf {
    store.path().join(format!("joining{suffix}"))
}

fn parse(text: &str) -> Option<Invitation> {
    let mut lines = text.lines();
    lines.next().filter(|line| *line == FIRST_LINE)?;
    let token = lines.next()?.strip_prefix("token ")?.parse().ok()?;
    let member = |line: &str| {
        let mut words = line.strip_prefix("member ")?.split(' ');
        let key = NodePublicKey(hex::decode(words.next()?)?.try_into().ok()?);
        Some((key, words.map(str::parse).collect::<Result<_, _>>().ok()?))
    };
    Some(Invitation { token, members: lines.map(member).collect::<Option<_>>()? })
}

#[cfg(test)]
mod tests {
    use phifs_core::ssep::Secret;

    use super::*;

    #[test]
    fn what_is_remembered_is_found_again_and_garbage_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let store = StoreDir::create(dir.path()).unwrap();
        assert!(Invitation::load(&store).unwrap().is_none());
        let addresses: Vec<SocketAddr> = vec!["192.0.2.7:7447".parse().unwrap(), "[2001:db8::1]:7".parse().unwrap()];
        let token = Token {
            volume: [1; 16],
            inviter: NodePublicKey([2; 32]),
            addresses: addresses.clone(),
            secret: Secret([3; 16]),
            expires_ms: 4,
        };
        let members = vec![(NodePublicKey([2; 32]), addresses), (NodePublicKey([5; 32]), Vec::new())];
        let invitation = Invitation { token, members };
        invitation.remember(&store).unwrap();
        let found = Invitation::load(&store).unwrap().unwrap();
        assert_eq!((found.token, &found.members), (invitation.token.clone(), &invitation.members));
        let text = invitation.to_text();
        for damaged in ["", &text[..40], &text.replace("member 02", "member 0"), &text.replace(":7447", ":x")] {
            assert!(parse(damaged).is_none(), "{damaged:?}");
        }
        Invitation::forget(&store).unwrap();
        assert!(Invitation::load(&store).unwrap().is_none());
    }
}
