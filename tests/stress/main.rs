//! Many at once, and for long: threads that share files and directories, writers of every kind watched by readers, and
//! what the daemon needs for it all. On ext4 (`PHIFS_TEST_ON=ext4`) the same tests show that they ask for nothing more
//! than a local filesystem gives.

mod bounds;
mod shared;
mod visibility;
