//! Exports of every released format, which must be read for ever: what they hold must look as it did.

use phifs_core::volume::{Ino, Volume};

use super::{Site, noise};
use crate::harness::{CALLER, read_tree};

/// Of all that a volume can hold.
pub const FULL: &[u8] = include_bytes!("../golden/export-v1-full.phi");
/// And what changed after it.
const INCREMENT: &[u8] = include_bytes!("../golden/export-v1-increment.phi");

const FIRST_TREE: &str = "6e97f401d902e751c302dadae07eeef6980475acd3d5cc95da13661a6eee6bb1";
const SECOND_TREE: &str = "99dcc1d0633c33b9d7563fa86283c144740cb869fc59271927f7ca87e24b10d4";

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn exports_of_version_1_are_what_they_were() {
    let site = Site::out_of(1, FULL);
    assert_eq!(hex(&site.volume.tree_root().unwrap()), FIRST_TREE);
    assert_eq!(hex(&site.verified("first")), FIRST_TREE);
    site.import(INCREMENT).unwrap();
    assert_eq!(hex(&site.verified("second")), SECOND_TREE);
    let (_, files) = read_tree(&site.volume).unwrap();
    assert_eq!(files[&b"/inline"[..]], b"few bytes");
    assert_eq!(files[&b"/dir/single"[..]], files[&b"/dir/deep/other name"[..]]);
    assert_eq!(files[&b"/dir/deep/long"[..]], vec![b'l'; 300_000]);
    assert!(files[&b"/dir/deep/holes"[..]][65_536..196_608].iter().all(|byte| *byte == 0));
    // Whoever has read them writes them again, byte for byte.
    assert!(site.export("first", None) == FULL && site.export("second", Some("first")) == INCREMENT);
}

/// For the next version of the format: the files of an old one are never written again.
#[test]
#[ignore = "writes the golden files"]
fn write_golden_files() {
    let site = Site::new(0);
    site.fill_with(&[5000, 300_000, 250_000], |at, len| if at == 0 { noise(1, len) } else { vec![b"slh"[at]; len] });
    site.snapshot("first");
    site.write(Ino::ROOT, b"inline", b"other bytes");
    let dir = site.volume.lookup(&CALLER, Ino::ROOT, b"dir").unwrap().ino;
    site.volume.unlink(dir, b"file 1").unwrap();
    site.write(dir, b"single", &noise(9, 6000));
    site.snapshot("second");
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/volume/golden");
    std::fs::create_dir_all(folder).unwrap();
    std::fs::write(format!("{folder}/export-v1-full.phi"), site.export("first", None)).unwrap();
    std::fs::write(format!("{folder}/export-v1-increment.phi"), site.export("second", Some("first"))).unwrap();
    println!("{}\n{}", hex(&site.verified("first")), hex(&site.verified("second")));
}
