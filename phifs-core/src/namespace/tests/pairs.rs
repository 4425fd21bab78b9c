//! Two people change the same thing: every pair of calls, in every order of deliveries and joins on three replicas.
//!
//! The rows of the table of conflicts are written down here as they are in the documentation: what one does, what the
//! other does, and what everybody sees afterwards. `crossed` has all pairs of all calls, which must lose nothing.

use std::collections::{BTreeMap, BTreeSet};

use super::super::coherence;
use super::super::derive::{Child, links_of};
use super::super::tables::Rows;
use super::super::view::{self, Found};
use super::super::{conflict, union};
use super::calls::Call::{self, *};
use super::calls::{default_permissions, text};
use super::suspects::judge;
use super::{MapTables, Replica, Sent};
use crate::id::{AuthorId, DirId, Dot, InodeId};
use crate::time::Hlc;
use crate::volume::FileKind;

/// A row of the table, or one of several ways in which it can come about.
struct Row {
    number: u32,
    a: &'static [Call],
    b: &'static [Call],
    /// What the names are then that are not as before, if A's operations are the later ones by clock and author, and if
    /// B's are.
    then: [Names; 2],
}

/// Paths and what is there; `-` where nothing is.
type Names = &'static [(&'static str, &'static str)];

fn row(number: u32, a: &'static [Call], b: &'static [Call], then: Names) -> Row {
    Row { number, a, b, then: [then; 2] }
}

/// A row where the later of the two counts.
fn later(number: u32, a: &'static [Call], b: &'static [Call], if_a: Names, if_b: Names) -> Row {
    Row { number, a, b, then: [if_a, if_b] }
}

/// What there is at first, and everybody has seen.
const TREE: &[Call] = &[
    Mkdir("/d"),
    Write("/d/f", "f"),
    Mkdir("/d/sub"),
    Write("/d/sub/deep", "deep"),
    Mkdir("/e"),
    Write("/t", "t"),
    Write("/k", "k"),
    Write("/g", "g"),
    Link("/g", "/h"),
    Symlink("f", "/s"),
    Write("/set-id", "i"),
    Chmod("/set-id", 0o6755),
    SetXattr("/k", "old", "1"),
];

/// A file is shown as the text of its versions, `A|B` if there are several; several files of one name as `A + B`. The
/// one that is read has a `!` where that matters. Then come permissions, owner, time and attributes if they are not the
/// usual ones, and the number of links. A file beside a directory of its name is at `NAME~phi`.
#[rustfmt::skip]
fn rows() -> Vec<Row> {
    vec![
        row(1, &[Write("/n", "A")], &[Write("/n", "B")], &[("/n", "A + B")]),
        row(1, &[Write("/n", "same")], &[Write("/n", "same")], &[("/n", "same + same alike")]),
        row(1, &[Create("/n")], &[Create("/n")], &[("/n", "empty + empty alike")]),
        row(1, &[Write("/n", "same")], &[Write("/n", "same"), Chmod("/n", 0o600)], &[("/n", "same + same 0600")]),
        later(1, &[Write("/n", "A")], &[Write("/n", "B")], &[("/n", "A! + B")], &[("/n", "A + B!")]),
        row(2, &[Write("/n", "A")], &[Mkdir("/n")], &[("/n", "dir"), ("/n~phi", "A")]),
        row(2, &[Write("/n", "A")], &[Mkdir("/n"), Write("/n/x", "B")],
            &[("/n", "dir"), ("/n/x", "B"), ("/n~phi", "A")]),
        row(3, &[Mkdir("/n")], &[Mkdir("/n")], &[("/n", "union of 2")]),
        row(3, &[Mkdir("/n"), Chmod("/n", 0o750)], &[Mkdir("/n"), Chmod("/n", 0o705)], &[("/n", "union of 2 0700")]),
        row(3, &[Mkdir("/n"), Write("/n/x", "A"), Write("/n/z", "A")], &[Mkdir("/n"), Write("/n/y", "B"), Write("/n/z", "B")],
            &[("/n", "union of 2"), ("/n/x", "A"), ("/n/y", "B"), ("/n/z", "A + B")]),
        row(3, &[Mkdir("/n"), Mkdir("/n/m"), Write("/n/m/x", "A")], &[Mkdir("/n"), Mkdir("/n/m"), Write("/n/m/y", "B")],
            &[("/n", "union of 2"), ("/n/m", "union of 2"), ("/n/m/x", "A"), ("/n/m/y", "B")]),
        row(4, &[Symlink("one", "/n")], &[Symlink("one", "/n")], &[("/n", "-> one + -> one alike")]),
        row(4, &[Symlink("one", "/n")], &[Symlink("two", "/n")], &[("/n", "-> one + -> two")]),
        row(4, &[Symlink("one", "/n")], &[Write("/n", "B")], &[("/n", "-> one + B")]),
        row(5, &[Link("/t", "/n")], &[Write("/n", "B")], &[("/t", "t x2"), ("/n", "B + t x2")]),
        row(5, &[Link("/t", "/n")], &[Link("/k", "/n")],
            &[("/t", "t x2"), ("/k", "k old=1 x2"), ("/n", "k old=1 x2 + t x2")]),
        row(5, &[Link("/t", "/n")], &[Link("/t", "/n")], &[("/t", "t x3"), ("/n", "t x3 alike")]),
        row(6, &[Write("/t", "A")], &[Write("/t", "B")], &[("/t", "A|B")]),
        later(6, &[Write("/t", "A")], &[Write("/t", "B")], &[("/t", "A!|B")], &[("/t", "A|B!")]),
        row(6, &[Write("/g", "A")], &[Write("/h", "B")], &[("/g", "A|B x2"), ("/h", "A|B x2")]),
        row(7, &[Write("/t", "A")], &[Chmod("/t", 0o600)], &[("/t", "A 0600")]),
        row(7, &[Write("/t", "A")], &[Chown("/t", 7)], &[("/t", "A uid 7")]),
        row(7, &[Write("/t", "A")], &[SetXattr("/t", "k", "v")], &[("/t", "A k=v")]),
        later(7, &[Write("/t", "A")], &[SetTime("/t", 9)], &[("/t", "A")], &[("/t", "A mtime 9")]),
        row(7, &[Write("/set-id", "A")], &[Chmod("/set-id", 0o6711)], &[("/set-id", "A 0711")]),
        row(7, &[Write("/set-id", "A")], &[Chown("/set-id", 7)], &[("/set-id", "A 0755 uid 7")]),
        // Set-id bits and capabilities are for the bytes and the owner that were seen, and for no others.
        row(7, &[Write("/t", "A")], &[Chmod("/t", 0o4711)], &[("/t", "A 0711")]),
        row(7, &[WriteAsRoot("/t", "A")], &[Chmod("/t", 0o4711)], &[("/t", "A 0711")]),
        row(7, &[Write("/t", "A"), Chmod("/t", 0o4711)], &[], &[("/t", "A 4711")]),
        row(7, &[Write("/t", "A")], &[Chmod("/t", 0o4711), Write("/k", "B")], &[("/t", "A 0711"), ("/k", "B old=1")]),
        row(7, &[Write("/t", "A"), Chmod("/t", 0o4711)], &[Chmod("/t", 0o4711)], &[("/t", "A 0711")]),
        row(7, &[Truncate("/t")], &[Chmod("/t", 0o2755)], &[("/t", "empty 0755")]),
        row(7, &[Write("/n", "A")], &[Write("/n", "B"), Chmod("/n", 0o4755)], &[("/n", "A + B 4755")]),
        row(7, &[WriteAsRoot("/set-id", "A")], &[], &[("/set-id", "A 6755")]),
        row(7, &[WriteAsRoot("/set-id", "A"), WriteAsRoot("/set-id", "AA")], &[Chown("/t", 7)],
            &[("/set-id", "AA 6755"), ("/t", "t uid 7")]),
        row(7, &[WriteAsRoot("/set-id", "A")], &[Write("/set-id", "B")], &[("/set-id", "A|B 0755")]),
        row(7, &[WriteAsRoot("/set-id", "A")], &[WriteAsRoot("/set-id", "B")], &[("/set-id", "A|B 0755")]),
        row(7, &[WriteAsRoot("/set-id", "A")], &[Chown("/set-id", 7)], &[("/set-id", "A 0755 uid 7")]),
        row(7, &[Chown("/t", 0)], &[Chmod("/t", 0o4755)], &[("/t", "t 0755 uid 0")]),
        row(7, &[Chown("/t", 0), Chmod("/t", 0o4755)], &[SetTime("/t", 9)], &[("/t", "t 4755 uid 0 mtime 9")]),
        row(7, &[Rename("/set-id", "/n")], &[Link("/set-id", "/m")],
            &[("/set-id", "-"), ("/n", "i 6755 x2"), ("/m", "i 6755 x2")]),
        row(7, &[Chmod("/d", 0o2755)], &[Write("/d/new", "B"), Chown("/d", 7)], &[("/d", "dir 2755 uid 7"), ("/d/new", "B")]),
        row(7, &[SetCapability("/t", "c")], &[SetTime("/t", 9)], &[("/t", "t mtime 9 cap=c")]),
        row(7, &[SetCapability("/t", "c")], &[Write("/t", "B")], &[("/t", "B")]),
        row(7, &[SetCapability("/t", "c")], &[Chown("/t", 7)], &[("/t", "t uid 7")]),
        row(7, &[Write("/t", "A"), SetCapability("/t", "c")], &[Chmod("/t", 0o600)], &[("/t", "A 0600 cap=c")]),
        row(7, &[SetCapability("/t", "c"), Write("/t", "A")], &[], &[("/t", "A")]),
        row(8, &[Chmod("/t", 0o640)], &[Chmod("/t", 0o604)], &[("/t", "t 0600")]),
        row(8, &[Chmod("/t", 0o4755)], &[Chmod("/t", 0o755)], &[("/t", "t 0755")]),
        row(8, &[Chmod("/t", 0o444)], &[Chmod("/t", 0o600)], &[("/t", "t 0600")]),
        row(8, &[Chmod("/d", 0o750)], &[Chmod("/d", 0o705)], &[("/d", "dir 0700")]),
        later(9, &[Chown("/t", 7)], &[Chown("/t", 8)], &[("/t", "t uid 7")], &[("/t", "t uid 8")]),
        later(9, &[SetXattr("/t", "k", "A")], &[SetXattr("/t", "k", "B")], &[("/t", "t k=A")], &[("/t", "t k=B")]),
        row(9, &[SetXattr("/t", "k", "A")], &[SetXattr("/t", "l", "B")], &[("/t", "t k=A l=B")]),
        row(9, &[SetXattr("/k", "old", "2")], &[RemoveXattr("/k", "old")], &[("/k", "k old=2")]),
        row(10, &[Write("/t", "A")], &[Unlink("/t")], &[("/t", "A")]),
        row(10, &[Append("/t", "A")], &[Unlink("/t")], &[("/t", "tA")]),
        row(10, &[Truncate("/t")], &[Unlink("/t")], &[("/t", "empty")]),
        row(10, &[Write("/g", "A")], &[Unlink("/h")], &[("/g", "A x2"), ("/h", "A x2")]),
        row(11, &[Chmod("/t", 0o600)], &[Unlink("/t")], &[("/t", "-")]),
        row(11, &[Chown("/t", 7)], &[Unlink("/t")], &[("/t", "-")]),
        row(11, &[SetTime("/t", 9)], &[Unlink("/t")], &[("/t", "-")]),
        row(11, &[SetXattr("/t", "k", "v")], &[Unlink("/t")], &[("/t", "-")]),
        row(11, &[Chmod("/e", 0o700)], &[Rmdir("/e")], &[("/e", "-")]),
        later(12, &[Rename("/t", "/x")], &[Rename("/t", "/y")],
            &[("/t", "-"), ("/x", "t")], &[("/t", "-"), ("/y", "t")]),
        later(12, &[Rename("/g", "/x")], &[Rename("/g", "/y")],
            &[("/g", "-"), ("/x", "g x2")], &[("/g", "-"), ("/y", "g x2")]),
        row(12, &[Rename("/t", "/x")], &[Rename("/t", "/x")], &[("/t", "-"), ("/x", "t")]),
        row(12, &[Rename("/t", "/x")], &[Write("/t", "B")], &[("/t", "-"), ("/x", "B")]),
        row(13, &[Rename("/t", "/n")], &[Rename("/k", "/n")], &[("/t", "-"), ("/k", "-"), ("/n", "k old=1 + t")]),
        row(14, &[Rename("/t", "/x")], &[Unlink("/t")], &[("/t", "-"), ("/x", "t")]),
        row(14, &[Rename("/t", "/d/f")], &[Unlink("/t")], &[("/t", "-"), ("/d/f", "t")]),
        row(15, &[Rename("/k", "/t")], &[Write("/t", "B")], &[("/k", "-"), ("/t", "B + k old=1")]),
        row(16, &[Write("/.a", "A"), Rename("/.a", "/t")], &[Write("/.b", "B"), Rename("/.b", "/t")], &[("/t", "A + B")]),
        row(17, &[Rename("/k", "/t")], &[Unlink("/t")], &[("/k", "-"), ("/t", "k old=1")]),
        row(18, &[Link("/t", "/x")], &[Unlink("/t")], &[("/t", "-"), ("/x", "t")]),
        row(18, &[Link("/t", "/x")], &[Rename("/t", "/y")], &[("/t", "-"), ("/x", "t x2"), ("/y", "t x2")]),
        row(19, &[Link("/t", "/x")], &[Link("/t", "/y")], &[("/t", "t x3"), ("/x", "t x3"), ("/y", "t x3")]),
        row(20, &[Unlink("/t")], &[Unlink("/t")], &[("/t", "-")]),
        row(20, &[Unlink("/g")], &[Unlink("/h")], &[("/g", "-"), ("/h", "-")]),
        row(20, &[Rmdir("/e")], &[Rmdir("/e")], &[("/e", "-")]),
        row(20, &[RemoveTree("/d")], &[RemoveTree("/d")], &[("/d", "-")]),
        row(21, &[Rmdir("/e")], &[Write("/e/x", "B")], &[("/e/x", "B")]),
        row(21, &[Rmdir("/e")], &[Mkdir("/e/x")], &[("/e/x", "dir")]),
        row(21, &[Rmdir("/e")], &[Symlink("a", "/e/x")], &[("/e/x", "-> a")]),
        row(21, &[Rmdir("/e")], &[Link("/t", "/e/x")], &[("/t", "t x2"), ("/e/x", "t x2")]),
        row(21, &[Rmdir("/e")], &[Rename("/t", "/e/x")], &[("/t", "-"), ("/e/x", "t")]),
        row(21, &[RemoveTree("/d")], &[Write("/d/sub/x", "B")],
            &[("/d/f", "-"), ("/d/sub/deep", "-"), ("/d/sub/x", "B")]),
        row(22, &[RemoveTree("/d")], &[Write("/d/sub/deep", "B")], &[("/d/f", "-"), ("/d/sub/deep", "B")]),
        row(22, &[RemoveTree("/d")], &[Chmod("/d/sub/deep", 0o600)], &[("/d", "-")]),
        row(23, &[Rmdir("/e")], &[Rename("/e", "/x")], &[("/e", "-"), ("/x", "dir")]),
        row(24, &[RemoveTree("/d")], &[Rename("/d", "/x")], &[("/d", "-"), ("/x", "dir")]),
        row(24, &[RemoveTree("/d")], &[Rename("/d", "/x"), Write("/x/new", "B"), Write("/x/f", "B")],
            &[("/d", "-"), ("/x", "dir"), ("/x/new", "B"), ("/x/f", "B")]),
        row(24, &[RemoveTree("/d")], &[Rename("/d/sub", "/x")], &[("/d", "-"), ("/x", "dir")]),
        row(25, &[Rename("/d", "/x")], &[Write("/d/new", "B")],
            &[("/d", "-"), ("/x", "dir"), ("/x/f", "f"), ("/x/sub", "dir"), ("/x/sub/deep", "deep"), ("/x/new", "B")]),
        row(25, &[Rename("/e", "/x")], &[Mkdir("/e/new")], &[("/e", "-"), ("/x", "dir"), ("/x/new", "dir")]),
        later(26, &[Rename("/e", "/x")], &[Rename("/e", "/y")],
            &[("/e", "-"), ("/x", "dir")], &[("/e", "-"), ("/y", "dir")]),
        later(27, &[Rename("/d", "/e/d")], &[Rename("/e", "/d/e")],
            &[("/e", "-"), ("/d/e", "dir")],
            &[("/d", "-"), ("/e/d", "dir"), ("/e/d/f", "f"), ("/e/d/sub", "dir"), ("/e/d/sub/deep", "deep")]),
        // A circle of three: of three moves the last is not made.
        later(27, &[Mkdir("/e/x"), Rename("/d", "/e/x/d")], &[Mkdir("/d/sub/y"), Rename("/e", "/d/sub/y/e")],
            &[("/e", "-"), ("/d/sub/y", "dir"), ("/d/sub/y/e", "dir"), ("/d/sub/y/e/x", "dir")],
            &[("/d", "-"), ("/e/x", "dir"), ("/e/x/d", "dir"), ("/e/x/d/f", "f"), ("/e/x/d/sub", "dir"),
              ("/e/x/d/sub/deep", "deep"), ("/e/x/d/sub/y", "dir")]),
        row(28, &[Rename("/d", "/n")], &[Mkdir("/n")],
            &[("/d", "-"), ("/n", "union of 2"), ("/n/f", "f"), ("/n/sub", "dir"), ("/n/sub/deep", "deep")]),
        row(28, &[Rename("/d", "/n")], &[Rename("/e", "/n")],
            &[("/d", "-"), ("/e", "-"), ("/n", "union of 2"), ("/n/f", "f"), ("/n/sub", "dir"), ("/n/sub/deep", "deep")]),
        row(28, &[Rename("/d", "/n")], &[Mkdir("/n"), Mkdir("/n/sub"), Write("/n/sub/deep", "B")],
            &[("/d", "-"), ("/n", "union of 2"), ("/n/f", "f"), ("/n/sub", "union of 2"), ("/n/sub/deep", "B + deep")]),
        row(29, &[Rename("/e", "/n")], &[Write("/n", "B")], &[("/e", "-"), ("/n", "dir"), ("/n~phi", "B")]),
        row(29, &[Rename("/e", "/n")], &[Rename("/t", "/n")], &[("/e", "-"), ("/t", "-"), ("/n", "dir"), ("/n~phi", "t")]),
        row(30, &[Rename("/d/sub", "/e/sub")], &[Rmdir("/e")],
            &[("/d/sub", "-"), ("/e/sub", "dir"), ("/e/sub/deep", "deep")]),
        row(32, &[Exchange("/t", "/k")], &[Write("/t", "B")], &[("/t", "k old=1"), ("/k", "B")]),
        row(32, &[Exchange("/t", "/k")], &[Unlink("/t")], &[("/t", "k old=1"), ("/k", "t")]),
        row(32, &[Exchange("/t", "/k")], &[Exchange("/t", "/k")], &[("/t", "k old=1"), ("/k", "t")]),
        later(32, &[Exchange("/t", "/k")], &[Rename("/t", "/x")],
            &[("/t", "k old=1"), ("/k", "t")], &[("/t", "k old=1"), ("/k", "-"), ("/x", "t")]),
        row(32, &[Exchange("/t", "/e")], &[Write("/e/x", "B")], &[("/t", "dir"), ("/t/x", "B"), ("/e", "t")]),
        row(32, &[Exchange("/t", "/e")], &[RemoveTree("/e")], &[("/t", "dir"), ("/e", "t")]),
        row(34, &[Append("/t", "A")], &[Append("/t", "B")], &[("/t", "tA|tB")]),
        row(35, &[Truncate("/t")], &[Write("/t", "B")], &[("/t", "B!|empty")]),
        row(35, &[Truncate("/t")], &[Append("/t", "B")], &[("/t", "empty|tB!")]),
        row(40, &[Fifo("/n")], &[Fifo("/n")], &[("/n", "fifo + fifo alike")]),
        row(40, &[Fifo("/n")], &[Write("/n", "B")], &[("/n", "B + fifo")]),
        row(40, &[Fifo("/n")], &[Mkdir("/n")], &[("/n", "dir"), ("/n~phi", "fifo")]),
    ]
}

/// Rows that are not about two operations alone.
const ELSEWHERE: &[(u32, &str)] = &[
    (31, "needs a union that one side has not seen: of_a_moved_union_what_nobody_had_seen_stays_behind"),
    (33, "as row 1 as long as nobody keeps note of the flag O_EXCL"),
    (36, "comes with volumes that fold names"),
    (37, "is about what was seen: a_removal_that_was_seen_is_not_taken_back_by_a_write"),
    (38, "comes with quotas"),
    (39, "comes with members that were away for longer than operations are kept"),
];

/// The places of an operation in the order that decides where one must: the clock, then the author.
#[derive(Clone, Copy, Debug)]
pub struct Order {
    authors: [u8; 2],
    ahead: [u64; 2],
}

/// Either side ahead, or none, and either author the larger.
pub fn orders() -> impl Iterator<Item = Order> {
    let authors = [[1, 2], [2, 1]];
    authors.into_iter().flat_map(|authors| [[500, 0], [0, 500], [0, 0]].map(|ahead| Order { authors, ahead }))
}

impl Order {
    fn is_a_later(&self) -> bool {
        (self.ahead[0], self.authors[0]) > (self.ahead[1], self.authors[1])
    }

    fn is_tied(&self) -> bool {
        self.ahead[0] == self.ahead[1]
    }

    /// Two replicas that have seen the same, and a third one.
    pub fn replicas(&self, seen: &Replica) -> [Replica; 3] {
        let replica =
            |author, ahead| Replica { author: AuthorId([author; 16]), hlc: Hlc(seen.hlc.0 + ahead), ..seen.clone() };
        [replica(self.authors[0], self.ahead[0]), replica(self.authors[1], self.ahead[1]), replica(3, 0)]
    }
}

pub fn tree() -> Replica {
    let mut replica = Replica::new(9);
    replica.calls(TREE);
    replica
}

pub fn joined(into: &Replica, others: &[&Replica]) -> Replica {
    let mut joined = into.clone();
    others.iter().for_each(|other| joined.join(other));
    joined
}

fn told(into: &Replica, sent: &[&[Sent]]) -> Replica {
    let mut told = into.clone();
    sent.iter().copied().flatten().for_each(|sent| told.receive(sent));
    told
}

/// A and B have done something; everybody hears of it, each time in another way. All come to the same.
pub fn meet(a: &Replica, from_a: &[Sent], b: &Replica, from_b: &[Sent], c: &Replica) -> Replica {
    judge(a, b).and(judge(b, a)).expect("an honest state is refused");
    let end = told(c, &[from_a, from_b]);
    let (a_b, b_a) = (joined(a, &[b]), joined(b, &[a]));
    let watched = [told(c, &[from_b, from_a]), joined(c, &[a, b])];
    let [a, b, c, a_b, b_a] = [a, b, c, &a_b, &b_a].map(|replica| Replica { watched: false, ..replica.clone() });
    let mut others = vec![
        told(&a, &[from_b]),
        told(&b, &[from_a]),
        joined(&c, &[&b, &a]),
        joined(&c, &[&b_a]),
        joined(&c, &[&a_b, &b, &a, &a_b]),
        joined(&a_b, &[&b, &a_b, &a]),
        joined(&told(&c, &[from_a]), &[&b]),
        joined(&told(&c, &[from_b]), &[&a]),
        told(&joined(&c, &[&a]), &[from_b]),
        told(&joined(&c, &[&b]), &[from_a]),
        a_b,
        b_a,
    ];
    others.extend(watched);
    for seen in 1..from_a.len() {
        let early = told(&c, &[&from_a[..seen]]);
        others.push(joined(&early, &[&b, &a]));
        others.push(told(&joined(&early, &[&b]), &[&from_a[seen..]]));
        others.push(joined(&told(&early, &[from_b]), &[&a]));
    }
    others.extend(merged_orders(from_a, from_b).iter().map(|order| told(&c, &[order])));
    for other in others {
        assert_eq!(other.context, end.context);
        assert!(other.tables == end.tables, "{:?}\n{:?}", listing(&other.tables), listing(&end.tables));
    }
    end
}

/// Every order of both that keeps the order of each.
fn merged_orders(a: &[Sent], b: &[Sent]) -> Vec<Vec<Sent>> {
    let (Some((first_a, rest_a)), Some((first_b, rest_b))) = (a.split_first(), b.split_first()) else {
        return vec![[a, b].concat()];
    };
    let with = |first: &Sent, rest: Vec<Vec<Sent>>| {
        rest.into_iter().map(|rest| [std::slice::from_ref(first), &rest[..]].concat()).collect::<Vec<_>>()
    };
    [with(first_a, merged_orders(rest_a, b)), with(first_b, merged_orders(a, rest_b))].concat()
}

/// Every path, and what is there.
fn listing(tables: &MapTables) -> BTreeMap<String, String> {
    let mut paths = BTreeMap::new();
    let mut todo = vec![(String::new(), DirId::ROOT)];
    while let Some((above, dir)) = todo.pop() {
        for listed in view::list(tables, dir, 0, usize::MAX).unwrap() {
            let name = String::from_utf8(listed.name).unwrap();
            let found = view::find(tables, dir, name.as_bytes()).unwrap().unwrap();
            assert_eq!(found.shown, listed.child, "{above}/{name}");
            let path = format!("{above}/{}", plain_name(&name, &found));
            if let Child::Dir(dir) = found.shown {
                todo.push((path.clone(), dir));
            }
            assert_eq!(paths.insert(path, describe(tables, &found)), None);
        }
    }
    paths
}

/// A name without the digits that make a file's name differ from the directory's beside it.
fn plain_name(name: &str, found: &Found) -> String {
    let Some((plain, _)) = name.rsplit_once("~phi-") else { return name.to_owned() };
    let Child::Link { link, .. } = found.all[0] else { panic!("{name} is a directory") };
    assert_eq!(name.as_bytes(), view::display_name(plain.as_bytes(), link));
    format!("{plain}~phi")
}

fn describe(tables: &MapTables, found: &Found) -> String {
    if let Child::Dir(dir) = found.shown {
        let members = union::members(tables, dir).unwrap();
        assert!(members.iter().eq(found.all.iter().map(|child| match child {
            Child::Dir(dir) => dir,
            Child::Link { .. } => panic!("a file among directories"),
        })));
        let what = if members.len() == 1 { "dir".to_owned() } else { format!("union of {}", members.len()) };
        return what + &attributes(tables, dir.inode());
    }
    let inodes: BTreeSet<InodeId> = found.all.iter().map(|child| child.inode()).collect();
    let is_one = inodes.len() == 1;
    let mut states: Vec<String> =
        inodes.iter().map(|inode| state(tables, *inode, is_one, *inode == found.shown.inode())).collect();
    states.sort_by_key(|state| state.replace('!', ""));
    let alike = found.all.len() > 1 && coherence::coalesce(tables, &found.all).unwrap();
    states.join(" + ") + if alike { " alike" } else { "" }
}

fn state(tables: &MapTables, inode: InodeId, is_one: bool, is_shown: bool) -> String {
    let row = tables.inode(inode).unwrap().unwrap();
    let best = coherence::best(&row, Default::default()).map(|best| best.dot);
    let written = |dot: Dot| match text(tables, inode, dot) {
        text if text.is_empty() => "empty".to_owned(),
        text => text,
    };
    let mut texts: Vec<(String, bool)> =
        row.versions.dots().map(|dot| (written(dot), is_shown && Some(dot) == best)).collect();
    texts.sort();
    let is_one = is_one && texts.len() <= 1;
    let mark = |(text, is_best): (String, bool)| text + if is_best && !is_one { "!" } else { "" };
    let what = match row.kind() {
        FileKind::File if texts.is_empty() => "empty".to_owned(),
        FileKind::File => texts.into_iter().map(mark).collect::<Vec<_>>().join("|"),
        FileKind::Symlink => format!("-> {}", String::from_utf8_lossy(&row.birth.latest().unwrap().value.target)),
        _ => "fifo".to_owned(),
    };
    what + &attributes(tables, inode)
}

fn attributes(tables: &MapTables, inode: InodeId) -> String {
    let row = tables.inode(inode).unwrap().unwrap();
    let stat = view::stat(tables, inode, &row).unwrap();
    let mut said = String::new();
    if stat.mode.permissions != default_permissions(stat.kind) {
        said += &format!(" {:04o}", stat.mode.permissions);
    }
    if stat.owner.uid != 1 {
        said += &format!(" uid {}", stat.owner.uid);
    }
    if stat.mtime.secs != 1 {
        said += &format!(" mtime {}", stat.mtime.secs);
    }
    for (name, value) in view::xattrs(tables, inode).unwrap() {
        let name = String::from_utf8(name).unwrap();
        let name = name.trim_start_matches("user.").replace("security.capability", "cap");
        said += &format!(" {name}={}", String::from_utf8(value).unwrap());
    }
    match links_of(tables, inode).unwrap().len() {
        0 | 1 => said,
        links => format!("{said} x{links}"),
    }
}

/// What is listed before, with these names changed.
fn changed(mut before: BTreeMap<String, String>, then: &[(&str, &str)]) -> BTreeMap<String, String> {
    for (path, what) in then {
        if *what == "-" {
            before.retain(|at, _| at != path && !at.starts_with(&format!("{path}/")));
        }
    }
    for (path, what) in then.iter().filter(|(_, what)| *what != "-") {
        before.insert((*path).to_owned(), (*what).to_owned());
    }
    before
}

#[test]
fn every_row_of_the_table_comes_to_what_it_says() {
    let tree = tree();
    let before = listing(&tree.tables);
    let mut wrong = Vec::new();
    for row in rows() {
        for order in orders() {
            let [mut a, mut b, c] = order.replicas(&tree);
            let (from_a, from_b) = (a.calls(row.a), b.calls(row.b));
            let end = meet(&a, &from_a, &b, &from_b, &c);
            let then = row.then[usize::from(!order.is_a_later())];
            let mut found = listing(&end.tables);
            let mut wanted = changed(before.clone(), then);
            // Which of several is shown counts where it is said; a tie is broken by a hash.
            let says = then.iter().any(|(_, what)| what.contains('!'));
            if !says || order.is_tied() {
                let unmark = |names: &mut BTreeMap<String, String>| {
                    names.values_mut().for_each(|what| *what = what.replace('!', ""));
                };
                unmark(&mut found);
                unmark(&mut wanted);
            }
            if found != wanted {
                let differ = found.iter().filter(|(path, what)| wanted.get(*path) != Some(what));
                let missing = wanted.iter().filter(|(path, what)| found.get(*path) != Some(what));
                let (differ, missing): (Vec<_>, Vec<_>) = (differ.collect(), missing.collect());
                wrong.push(format!(
                    "row {}, {:?} against {:?}, {order:?}: there is {differ:?}, and should be {missing:?}",
                    row.number, row.a, row.b
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_row_of_the_table_is_here_or_it_is_said_where() {
    let here: BTreeSet<u32> = rows().iter().map(|row| row.number).collect();
    let elsewhere: BTreeSet<u32> = ELSEWHERE.iter().map(|(number, _)| *number).collect();
    assert!(here.is_disjoint(&elsewhere));
    assert!(here.union(&elsewhere).copied().eq(1..=40));
}

/// Two directories of one name were made, and somebody renames them, who has seen them as one. Nobody has seen a third.
#[test]
fn of_a_moved_union_what_nobody_had_seen_stays_behind() {
    let tree = tree();
    for order in orders() {
        let [mut a, mut b, c] = order.replicas(&tree);
        let mut other = Replica { author: AuthorId([5; 16]), ..tree.clone() };
        let mut from_a = other.calls(&[Mkdir("/n"), Write("/n/one", "1")]);
        from_a.extend(a.calls(&[Mkdir("/n"), Write("/n/two", "2")]));
        a.join(&other);
        from_a.extend(a.calls(&[Rename("/n", "/x")]));
        let from_b = b.calls(&[Mkdir("/n"), Write("/n/three", "3")]);
        let end = meet(&a, &from_a, &b, &from_b, &c);
        let then = [("/x", "union of 2"), ("/x/one", "1"), ("/x/two", "2"), ("/n", "dir"), ("/n/three", "3")];
        assert_eq!(listing(&end.tables), changed(listing(&tree.tables), &then), "{order:?}");
    }
}

#[test]
fn a_removal_that_was_seen_is_not_taken_back_by_a_write() {
    let tree = tree();
    for order in orders() {
        let [mut a, mut b, c] = order.replicas(&tree);
        a.calls(&[Unlink("/t")]);
        let open = b.find("/t").unwrap().shown.inode();
        b.join(&a);
        let effects = b.publish(open, "late");
        let sent = b.act(effects);
        let end = meet(&a, &[], &b, &[sent], &joined(&c, &[&a]));
        assert_eq!(listing(&end.tables), changed(listing(&tree.tables), &[("/t", "-")]));
    }
}

/// What there is to decide about is told, and deciding is nothing but an ordinary call by somebody who has seen it.
#[test]
fn a_call_that_has_seen_the_candidates_decides_about_them() {
    let tree = tree();
    for row in rows() {
        for order in orders().take(2) {
            let [mut a, mut b, c] = order.replicas(&tree);
            a.calls(row.a);
            b.calls(row.b);
            let end = Replica { watched: false, ..joined(&c, &[&a, &b]) };
            let names = listing(&end.tables);
            let disputed: BTreeSet<&str> =
                names.iter().filter(|(path, what)| is_disputed(path, what)).map(|(path, _)| &path[..]).collect();
            let conflicts = conflict::all(&end.tables).unwrap();
            let mut found = BTreeSet::new();
            for conflict in &conflicts {
                let above = view::path_of_dir(&end.tables, conflict.dir).unwrap().unwrap();
                let path = |name: &[u8]| String::from_utf8([&above[..], b"/", name].concat()).unwrap();
                let is_beside = conflict.matter == conflict::Matter::Type;
                found.insert(path(&conflict.name) + if is_beside { "~phi" } else { "" });
                let seen: &'static str = path(&conflict.seen_name()).leak();
                let mut decisions = vec![Unlink(seen), Rename(seen, "/decided")];
                if !is_beside {
                    decisions.push(Write(seen, "C"));
                }
                for decision in decisions {
                    let mut decided = end.clone();
                    decided.calls(&[decision]);
                    assert_eq!(
                        conflict::at(&decided.tables, conflict.dir, &conflict.name).unwrap(),
                        None,
                        "{decision:?}"
                    );
                }
            }
            let found: BTreeSet<&str> = found.iter().map(|path| &path[..]).collect();
            assert_eq!(found, disputed, "row {}, {:?} against {:?}: {names:?}", row.number, row.a, row.b);
        }
    }
}

fn is_disputed(path: &str, what: &str) -> bool {
    // What has another name is not hidden.
    let mut hidden = what.split(" + ").filter(|one| !one.contains('!') && !one.contains(" x"));
    let several = if what.contains(" + ") { hidden.next().is_some() } else { what.contains('|') };
    path.ends_with("~phi") || several && !what.ends_with(" alike")
}
