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

    /// To be called at the end of a test: no request may have panicked behind its back.
    #[track_caller]
    pub fn assert_healthy(&mut self) {
        if let Place::Phifs(node) = self {
            assert!(node.alive(), "the daemon has ended\n{}", node.log());
            node.assert_no_panic();
        }
    }
}
