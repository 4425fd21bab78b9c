//! The files of one branch as a disk of their own. What the store has only once, packs and ballast, stays where it is.

use std::io;
use std::sync::Arc;

use super::{BranchFile, Disk, File, FileName, Space};

pub struct BranchDisk {
    disk: Arc<dyn Disk>,
    number: u32,
}

impl BranchDisk {
    pub fn new(disk: Arc<dyn Disk>, number: u32) -> Self {
        Self { disk, number }
    }

    /// The name in the store of what the branch knows by `name`.
    fn outside(&self, name: FileName) -> FileName {
        let file = match name {
            FileName::Superblock => BranchFile::Superblock,
            FileName::Journal(n) => BranchFile::Journal(n),
            FileName::Oplog(n) => BranchFile::Oplog(n),
            FileName::Staging(n) => BranchFile::Staging(n),
            FileName::Pack(_) | FileName::Ballast | FileName::Branch(..) => return name,
        };
        FileName::Branch(self.number, file)
    }
}

impl Disk for BranchDisk {
    /// Those of the branch alone.
    fn list(&self) -> io::Result<Vec<FileName>> {
        let inside = |name| match name {
            FileName::Branch(number, file) if number == self.number => Some(match file {
                BranchFile::Superblock => FileName::Superblock,
                BranchFile::Journal(n) => FileName::Journal(n),
                BranchFile::Oplog(n) => FileName::Oplog(n),
                BranchFile::Staging(n) => FileName::Staging(n),
            }),
            _ => None,
        };
        let mut names: Vec<_> = self.disk.list()?.into_iter().filter_map(inside).collect();
        names.sort_unstable();
        Ok(names)
    }

    fn open(&self, name: FileName) -> io::Result<Arc<dyn File>> {
        self.disk.open(self.outside(name))
    }

    fn create(&self, name: FileName) -> io::Result<Arc<dyn File>> {
        self.disk.create(self.outside(name))
    }

    fn remove(&self, name: FileName) -> io::Result<()> {
        self.disk.remove(self.outside(name))
    }

    fn sync_names(&self) -> io::Result<()> {
        self.disk.sync_names()
    }

    fn space(&self) -> io::Result<Space> {
        self.disk.space()
    }
}

#[cfg(test)]
mod tests {
    use super::super::MemDisk;
    use super::*;

    #[test]
    fn each_branch_sees_its_own_files_and_the_store_sees_all() {
        let store = Arc::new(MemDisk::new());
        let branches = [1, 2].map(|number| BranchDisk::new(store.clone(), number));
        let own = [FileName::Superblock, FileName::Journal(7), FileName::Oplog(8), FileName::Staging(9)];
        for name in own {
            branches[0].create(name).unwrap().write_at(b"first", 0).unwrap();
        }
        branches[1].create(FileName::Journal(7)).unwrap().write_at(b"other", 0).unwrap();
        assert_eq!(branches[0].list().unwrap(), own);
        assert_eq!(branches[1].list().unwrap(), [FileName::Journal(7)]);
        assert_eq!(store.list().unwrap().len(), 5);
        branches[0].remove(FileName::Journal(7)).unwrap();
        let mut bytes = [0; 5];
        branches[1].open(FileName::Journal(7)).unwrap().read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(&bytes, b"other");
    }

    #[test]
    fn what_the_store_has_once_is_shared() {
        let store = Arc::new(MemDisk::new());
        store.create(FileName::Pack(3)).unwrap();
        let branch = BranchDisk::new(store, 1);
        assert_eq!(branch.list().unwrap(), []);
        branch.open(FileName::Pack(3)).unwrap();
    }
}
