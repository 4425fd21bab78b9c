//! Where a test works: a mounted phifs, or ext4 when the tests themselves are under test.

use std::path::Path;

use crate::{DataMode, Ext4Loop, Node};

/// Room for the largest test (the build of a crate, a database) on the ext4 stand-in.
const EXT4_BYTES: u64 = 4 << 30;

pub enum Place {
    Phifs(Box<Node>),
    Ext4(Ext4Loop),
}

impl Place {
    #[track_caller]
    pub fn new(mode: DataMode) -> Place {
        if crate::on_ext4() { Place::Ext4(Ext4Loop::new(EXT4_BYTES)) } else { Place::Phifs(Box::new(Node::up(mode))) }
    }

    pub fn dir(&self) -> &Path {
        match self {
            Place::Phifs(node) => node.dir(),
            Place::Ext4(ext4) => ext4.dir(),
        }
    }

    /// Everything that nobody uses leaves memory: a clean stop and a new start.
    #[track_caller]
    pub fn restart(&mut self) {
        match self {
            Place::Phifs(node) => {
                node.down();
                node.start();
            }
            Place::Ext4(ext4) => {
                ext4.unmount();
                ext4.mount();
            }
        }
    }

    /// The place dies under whoever uses it (`kill -9` of the daemon, or a power cut of ext4) and comes back.
    /// `after_death` ends the users, who must not keep the dead mount busy.
    #[track_caller]
    pub fn crash(&mut self, after_death: impl FnOnce()) {
        match self {
            Place::Phifs(node) => {
                node.kill();
                after_death();
                node.start();
            }
            Place::Ext4(ext4) => {
                ext4.cut_power();
                after_death();
                ext4.unmount();
                ext4.mount();
            }
        }
    }

    /// To be called at the end of a test: no request may have panicked behind its back.
    #[track_caller]
    pub fn assert_healthy(&mut self) {
        if let Place::Phifs(node) = self {
            assert!(node.alive(), "the daemon has ended\n{}", node.log());
            node.assert_no_panic();
        }
    }
}
