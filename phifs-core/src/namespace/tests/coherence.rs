//! The coherence score: which of several concurrent states is shown.

use proptest::collection::vec;
use proptest::prelude::*;

use super::super::coherence::{Candidate, Preference, Score, State, best, candidates, coalesce, rank, shown};
use super::super::derive::Child;
use super::super::plan;
use super::super::register::Entry;
use super::super::row::{Closure, Evidence, InodeRow, Version};
use super::super::tables::Rows;
use super::super::version::{LAG_MAX, Validity};
use super::super::view::Stat;
use super::{Replica, Sent};
use crate::content::Content;
use crate::content::validate::Form;
use crate::id::{AuthorId, DirId, Dot, InodeId};
use crate::time::{Hlc, Timestamp};
use crate::volume::FileKind;

const ROOT: DirId = DirId::ROOT;

fn version(change: impl FnOnce(&mut Version)) -> Version {
    let (content, mtime, evidence) = (Content::Hole { len_bytes: 1 }, Timestamp::default(), Evidence::default());
    let mut version = Version { content, mtime, closure: Closure::Close, evidence, bases: Vec::new() };
    change(&mut version);
    version
}

/// A file with concurrent versions, each of an author of its own, the first published first.
fn row(versions: &[Version]) -> InodeRow {
    let mut row = InodeRow::default();
    for (n, value) in versions.iter().enumerate() {
        let dot = Dot { author: AuthorId([n as u8 + 1; 16]), n: 1 };
        row.versions.insert(Entry { dot, hlc: Hlc(100 + n as u64), value: value.clone() });
    }
    row
}

fn ranked(row: &InodeRow, preference: Preference) -> Vec<(Score, Candidate<'_>)> {
    rank(candidates(ROOT.inode(), row), preference)
}

/// Which of two versions wins, and by what. The second is the later one.
fn winner(
    first: impl FnOnce(&mut Version),
    second: impl FnOnce(&mut Version),
    preference: Preference,
) -> (usize, char) {
    let row = row(&[version(first), version(second)]);
    let ranked = ranked(&row, preference);
    let won = usize::from(ranked[0].1.dot.author.0[0]) - 1;
    assert_eq!(best(&row, preference).map(|entry| entry.dot), Some(ranked[0].1.dot));
    (won, ranked[0].0.deciding(&ranked[1].0).unwrap().letter)
}

#[test]
fn each_term_decides_before_those_that_follow() {
    let synced = |version: &mut Version| version.closure = Closure::SyncAndClose;
    let passes = |version: &mut Version| version.evidence.validity = Validity::Passes;
    let in_phase = |version: &mut Version| version.evidence.lag = 2;
    let worked = |version: &mut Version| version.evidence.sessions = 40;
    let plain = |_: &mut Version| {};
    let late = |version: &mut Version| version.evidence.lag = LAG_MAX;
    let collapsed = |version: &mut Version| version.evidence.collapsed = true;
    let both = |a: fn(&mut Version), b: fn(&mut Version)| move |version: &mut Version| (a(version), b(version)).1;
    assert_eq!(winner(synced, passes, Preference::Coherence), (0, 'K'));
    assert_eq!(winner(passes, plain, Preference::Coherence), (0, 'V'));
    assert_eq!(winner(both(passes, collapsed), plain, Preference::Coherence), (0, 'V'));
    assert_eq!(winner(late, both(collapsed, in_phase), Preference::Coherence), (0, 'E'));
    assert_eq!(winner(in_phase, both(late, worked), Preference::Coherence), (0, 'P'));
    assert_eq!(winner(worked, plain, Preference::Coherence), (0, 'D'));
    assert_eq!(winner(plain, plain, Preference::Coherence), (1, 'H'));
}

#[test]
fn who_prefers_recency_asks_for_defects_and_the_clock_alone() {
    let worked = |version: &mut Version| version.evidence.sessions = 40;
    let late = |version: &mut Version| version.evidence.lag = LAG_MAX;
    let collapsed = |version: &mut Version| version.evidence.collapsed = true;
    assert_eq!(winner(worked, late, Preference::Recency), (1, 'H'));
    assert_eq!(winner(late, collapsed, Preference::Recency), (0, 'E'));
}

#[test]
fn sessions_count_from_the_smallest_of_the_set_and_as_powers_of_two() {
    let of = |sessions: &[u32]| {
        let versions: Vec<_> = sessions.iter().map(|n| version(|version| version.evidence.sessions = *n)).collect();
        let row = row(&versions);
        let mut depths: Vec<_> = ranked(&row, Preference::Coherence)
            .iter()
            .map(|(score, candidate)| (candidate.dot, score.depth.unwrap()))
            .collect();
        depths.sort_unstable();
        depths.into_iter().map(|(_, depth)| depth).collect::<Vec<_>>()
    };
    assert_eq!(of(&[1000, 1000]), [0, 0]);
    assert_eq!(of(&[1001, 1000, 1003, 1007]), [1, 0, 2, 3]);
    assert_eq!(of(&[1, u32::MAX]), [0, 7]);
}

#[test]
fn a_score_names_its_terms_in_order() {
    let row = row(&[version(|_| {})]);
    let letters = |preference| -> String { ranked(&row, preference)[0].0.terms().map(|term| term.letter).collect() };
    assert_eq!(letters(Preference::Coherence), "AKVEPDHT");
    assert_eq!(letters(Preference::Recency), "AKVEHT");
}

/// Terms that meet often, so that the last ones come to decide.
fn drawn() -> impl Strategy<Value = Vec<(Version, u8, u64)>> {
    use Closure::{Close, CrashRecovered, IdleFlush, SyncAndClose};
    let closure = prop::sample::select(vec![CrashRecovered, IdleFlush, Close, SyncAndClose]);
    let validity = prop::sample::select(vec![Validity::Fails, Validity::Opaque, Validity::Passes]);
    let drawn = (closure, validity, any::<bool>(), 1..4u32, 0..=LAG_MAX, 1..4u8, 0..3u64);
    let drawn = drawn.prop_map(|(closure, validity, collapsed, sessions, lag, author, hlc)| {
        let evidence = Evidence { form: Form::Text, validity, collapsed, sessions, lag };
        (version(|version| (version.closure, version.evidence) = (closure, evidence)), author, hlc)
    });
    vec(drawn, 1..6)
}

proptest! {
    #[test]
    fn the_order_in_which_candidates_are_met_plays_no_part(drawn in drawn(), shuffled in any::<[u16; 6]>()) {
        let of = |n: usize| {
            let (version, author, hlc) = &drawn[n];
            let (author, n) = (AuthorId([*author; 16]), n as u64);
            let state = State::Version(version);
            Candidate { inode: InodeId(Dot { author, n }), dot: Dot { author, n }, hlc: Hlc(*hlc), state }
        };
        let mut order: Vec<usize> = (0..drawn.len()).collect();
        order.sort_by_key(|n| shuffled[*n]);
        for preference in [Preference::Coherence, Preference::Recency] {
            let dots = |candidates: Vec<Candidate<'_>>| -> Vec<Dot> {
                rank(candidates, preference).iter().map(|(_, candidate)| candidate.dot).collect()
            };
            let ranked = dots((0..drawn.len()).map(of).collect());
            prop_assert_eq!(&ranked, &dots(order.iter().map(|n| of(*n)).collect()));
        }
    }
}

#[test]
fn a_file_shows_its_best_version_even_if_it_is_not_the_latest() {
    let whole = version(|version| version.mtime = Timestamp::new(7, 0));
    let torn = version(|version| version.evidence.validity = Validity::Fails);
    let row = row(&[whole.clone(), torn]);
    let stat = Stat::of(&row);
    assert_eq!(stat.version, Some((Dot { author: AuthorId([1; 16]), n: 1 }, whole)));
    assert_eq!(stat.mtime, Timestamp::new(7, 0));
}

fn write(replica: &mut Replica, inode: InodeId, change: impl FnOnce(&mut Version)) -> Sent {
    let row = replica.tables.inode(inode).unwrap().unwrap();
    let version = version(change);
    let effects = plan::publish(&replica.tables, inode, &row, (version, None), Timestamp::default()).unwrap();
    replica.act(effects)
}

/// Two replicas make this of one name, and meet.
fn both(a: impl FnOnce(&mut Replica), b: impl FnOnce(&mut Replica)) -> (Replica, Vec<Child>) {
    let (mut one, mut other) = (Replica::new(1), Replica::new(2));
    a(&mut one);
    b(&mut other);
    one.join(&other);
    let children = one.tables.children(&super::derive::child_key(ROOT, b"x")).unwrap().all().to_vec();
    (one, children)
}

fn make(kind: FileKind, write_into: Option<u64>) -> impl FnOnce(&mut Replica) {
    move |replica| {
        replica.create(kind, ROOT, "x");
        if let Some(len_bytes) = write_into {
            let inode = replica.look(ROOT, "x").unwrap().inode();
            write(replica, inode, |version| version.content = Content::Hole { len_bytes });
        }
    }
}

fn shown_by(replica: &Replica, children: &[Child]) -> u8 {
    shown(&replica.tables, children).unwrap().unwrap().inode().0.author.0[0]
}

#[test]
fn a_written_file_is_shown_before_one_that_never_was() {
    for (a, b, winner) in [(Some(1), None, 1), (None, Some(1), 2)] {
        let (replica, children) = both(make(FileKind::File, a), make(FileKind::File, b));
        assert_eq!(children.len(), 2);
        assert_eq!(shown_by(&replica, &children), winner);
        assert!(!coalesce(&replica.tables, &children).unwrap());
    }
}

#[test]
fn a_directory_is_shown_before_the_best_file() {
    let (replica, children) = both(make(FileKind::File, Some(1)), make(FileKind::Directory, None));
    assert_eq!(shown_by(&replica, &children), 2);
    assert!(!coalesce(&replica.tables, &children).unwrap());
}

#[test]
fn files_that_look_the_same_are_one_whose_link_is_the_smallest() {
    let (mut replica, children) = both(make(FileKind::File, Some(1)), make(FileKind::File, Some(1)));
    assert!(coalesce(&replica.tables, &children).unwrap());
    assert_eq!(shown_by(&replica, &children), 1, "though the other is later");
    let inode = children[1].inode();
    let effect = plan::set_xattr(&replica.tables, replica.next_dot(), inode, b"user.a", Some(b"1".to_vec())).unwrap();
    replica.act(vec![effect]);
    assert!(!coalesce(&replica.tables, &children).unwrap());
    assert_eq!(shown_by(&replica, &children), 2);
}

#[test]
fn symlinks_and_devices_are_candidates_by_their_birth() {
    let (replica, children) = both(make(FileKind::Fifo, None), make(FileKind::Symlink, None));
    assert!(!coalesce(&replica.tables, &children).unwrap());
    let ranked = children.iter().map(|child| replica.tables.inode(child.inode()).unwrap().unwrap());
    let rows: Vec<_> = children.iter().map(|child| child.inode()).zip(ranked).collect();
    let ranked = rank(rows.iter().flat_map(|(inode, row)| candidates(*inode, row)), Preference::Coherence);
    assert_eq!(ranked.len(), 2);
    assert_eq!(shown_by(&replica, &children), ranked[0].1.inode.0.author.0[0]);
    let (replica, children) = both(make(FileKind::Symlink, None), make(FileKind::Symlink, None));
    assert!(coalesce(&replica.tables, &children).unwrap());
    assert_eq!(shown_by(&replica, &children), 1);
}

#[test]
fn a_loser_in_one_place_is_judged_by_its_best_version() {
    let (mut one, mut other) = (Replica::new(1), Replica::new(2));
    make(FileKind::File, Some(1))(&mut one);
    other.join(&one);
    let inode = one.look(ROOT, "x").unwrap().inode();
    let good = |version: &mut Version| version.closure = Closure::SyncAndClose;
    write(&mut one, inode, good);
    write(&mut other, inode, |version| version.evidence.collapsed = true);
    one.join(&other);
    // Somebody else's file of the same name is better than the worse of the two versions alone.
    let mut third = Replica::new(3);
    make(FileKind::File, Some(2))(&mut third);
    one.join(&third);
    let children = one.tables.children(&super::derive::child_key(ROOT, b"x")).unwrap().all().to_vec();
    assert_eq!(shown_by(&one, &children), 1);
}
