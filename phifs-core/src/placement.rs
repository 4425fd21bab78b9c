//! Which members keep which glyphs: computed by everybody alike from the layout alone, so nobody needs to ask.
//!
//! Weighted rendezvous hashing (Thaler and Ravishankar, "Using name-based mappings to increase hit rates", IEEE/ACM ToN
//! 1998; with weights by the logarithmic method of Schindelhauer and Schomaker, "Weighted distributed hash tables",
//! SPAA 2005, section 3): every member draws `-ln(u) / weight` for a glyph, where `u` is uniform in (0, 1] and made of
//! the two names, and the smallest draws win. The least of such draws comes from each member as often as its weight is
//! of all weights, and nothing is drawn anew for the others when a member comes or goes.
//!
//! Zones are kept apart by rank: first come the members that drew least in their zone, then the second of each zone, and
//! so on. As the least of exponential draws is one whose rate is the sum of theirs, this is the same as first drawing
//! among zones by their weight.
//!
//! What always holds:
//! - The same layout gives the same holders on every machine: there are only integers.
//! - Without a member, a glyph keeps all its other holders, and gets at most one new one.
//! - One zone holds a second copy only if every zone that has members holds a first one, and so on.

use std::collections::BTreeMap;

use crate::codec::{self, DecodeError, Encode, Reader};
use crate::id::GlyphId;
use crate::identity::NodePublicKey;
use crate::registry::{Member, word};

const LAYOUT_VERSION: u8 = 1;

/// How many copies there may be of a glyph.
pub const COPIES_MAX: u8 = 16;

/// A member as far as placement goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub key: NodePublicKey,
    /// How much it takes, in proportion to the others; 0: nothing.
    pub weight: u32,
    /// Copies are put into different zones. May be empty, which is a zone as well.
    pub zone: String,
    /// What kind of node it is. Nothing depends on it so far.
    pub class: String,
}

/// Who may hold glyphs, by key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// Tells layouts apart that place alike: one who was no member for a while may not have what it had.
    epoch: u64,
    places: Vec<Place>,
}

impl Layout {
    /// Of places with the same key, the first counts.
    pub fn new(epoch: u64, mut places: Vec<Place>) -> Self {
        places.sort_by_key(|place| place.key);
        places.dedup_by_key(|place| place.key);
        Self { epoch, places }
    }

    /// All members that stay, with equal weights. Who knows the same members gets the same.
    pub fn of_members<'a>(members: impl IntoIterator<Item = &'a (NodePublicKey, Member)>) -> Self {
        let place = |(key, member): &(NodePublicKey, Member)| Place {
            key: *key,
            weight: 1,
            zone: member.zone.clone(),
            class: member.role.clone(),
        };
        let mut members: Vec<_> = members.into_iter().filter(|(_, member)| !member.leaving).collect();
        members.sort_by_key(|(key, _)| *key);
        let mut admissions = blake3::Hasher::new();
        for (key, member) in &members {
            admissions
                .update(&key.0)
                .update(&member.since.secs.to_le_bytes())
                .update(&member.since.nanos.to_le_bytes());
        }
        let [a, b, c, d, e, f, g, h, ..] = *admissions.finalize().as_bytes();
        Self::new(u64::from_le_bytes([a, b, c, d, e, f, g, h]), members.into_iter().map(place).collect())
    }

    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    pub fn places(&self) -> &[Place] {
        &self.places
    }

    /// The members that are to hold a glyph, fewer than `copies` only if there are no more. The first is to be asked
    /// first.
    pub fn holders(&self, id: &GlyphId, copies: u8) -> Vec<NodePublicKey> {
        self.ranked(id).into_iter().take(copies.into()).map(|(_, _, key)| *key).collect()
    }

    /// Whether this member is to hold a glyph.
    pub fn is_holder(&self, key: &NodePublicKey, id: &GlyphId, copies: u8) -> bool {
        match self.all_alike(key, copies) {
            Some(is_holder) => is_holder,
            None => self.ranked(id).into_iter().take(copies.into()).any(|(_, _, holder)| holder == key),
        }
    }

    /// Whether this member is to hold every glyph.
    pub fn holds_all(&self, key: &NodePublicKey, copies: u8) -> bool {
        self.all_alike(key, copies) == Some(true)
    }

    /// Whether this member is to hold a glyph, if that is the same for all glyphs.
    fn all_alike(&self, key: &NodePublicKey, copies: u8) -> Option<bool> {
        let is_candidate = self.places.iter().any(|place| place.key == *key && place.weight > 0);
        let candidates = self.places.iter().filter(|place| place.weight > 0).count();
        (!is_candidate || candidates <= copies.into()).then_some(is_candidate)
    }

    /// All who may hold it, best first: rank in the zone, draw, key.
    fn ranked(&self, id: &GlyphId) -> Vec<(usize, u128, &NodePublicKey)> {
        let candidates = self.places.iter().filter(|place| place.weight > 0);
        let mut drawn: Vec<(u128, &Place)> =
            candidates.map(|place| (draw(id, &place.key, place.weight), place)).collect();
        drawn.sort_unstable_by_key(|(draw, place)| (*draw, place.key));
        let mut in_zone: BTreeMap<&str, usize> = BTreeMap::new();
        let mut ranked: Vec<_> = drawn
            .into_iter()
            .map(|(draw, place)| {
                let before = in_zone.entry(&place.zone).or_default();
                *before += 1;
                (*before, draw, &place.key)
            })
            .collect();
        ranked.sort_unstable();
        ranked
    }

    /// Names the layout: who has the same, finds the same holders.
    pub fn hash(&self) -> [u8; 32] {
        *blake3::hash(&self.encode()).as_bytes()
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![LAYOUT_VERSION];
        out.put_varint(self.epoch);
        out.put_varint(self.places.len() as u64);
        for Place { key, weight, zone, class } in &self.places {
            out.put_bytes(&key.0);
            out.put_varint(u64::from(*weight));
            out.put_blob(zone.as_bytes());
            out.put_blob(class.as_bytes());
        }
        out
    }

    pub fn decode(bytes: &[u8]) -> codec::Result<Self> {
        let mut reader = Reader::new(bytes);
        reader.format("a layout", LAYOUT_VERSION)?;
        let epoch = reader.varint()?;
        let place = |reader: &mut Reader<'_>| {
            let (key, weight) = (NodePublicKey(reader.array()?), reader.varint_u32()?);
            Ok(Place { key, weight, zone: word(reader)?, class: word(reader)? })
        };
        let places = (0..reader.count()?).map(|_| place(&mut reader)).collect::<codec::Result<Vec<_>>>()?;
        reader.finish()?;
        if !places.is_sorted_by(|a, b| a.key < b.key) {
            return Err(DecodeError::NotCanonical("the order of a layout"));
        }
        Ok(Self { epoch, places })
    }
}

/// `-log2(u) / weight`, where `u` is made of the two names. (The base of the logarithm is the same for all.)
fn draw(id: &GlyphId, key: &NodePublicKey, weight: u32) -> u128 {
    let mut names = [0; 64];
    names[..32].copy_from_slice(&id.0);
    names[32..].copy_from_slice(&key.0);
    let hash = blake3::hash(&names);
    let [a, b, c, d, e, f, g, h, ..] = *hash.as_bytes();
    let u = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
    (u128::from(minus_log2(u)) << 64) / u128::from(weight)
}

const FRACTION_BITS: u32 = 40;

/// `-log2(u / 2^64)` in units of 2^-40, rounded up by less than 2 of them; for 0 as for 1.
/// One bit after the other: squaring doubles the logarithm, and whether it passes 1 is the next bit.
fn minus_log2(u: u64) -> u64 {
    let u = u.max(1);
    let whole = 63 - u.leading_zeros();
    // Between 1 and 2, in units of 2^-63.
    let mut rest = u << u.leading_zeros();
    let mut log = u64::from(whole);
    for _ in 0..FRACTION_BITS {
        // At most 4, in units of 2^-126.
        let square = u128::from(rest) * u128::from(rest);
        let is_over = square >> 127 != 0;
        rest = (square >> if is_over { 64 } else { 63 }) as u64;
        log = log << 1 | u64::from(is_over);
    }
    (64 << FRACTION_BITS) - log
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key(n: u32) -> NodePublicKey {
        NodePublicKey(*blake3::hash(&n.to_le_bytes()).as_bytes())
    }

    fn glyph(n: u32) -> GlyphId {
        GlyphId::of(&n.to_be_bytes())
    }

    fn place(n: u32, weight: u32, zone: u32) -> Place {
        Place { key: key(n), weight, zone: format!("z{zone}"), class: String::new() }
    }

    /// One member for each weight and zone.
    fn layout(places: &[(u32, u32)]) -> Layout {
        let places = (0..).zip(places).map(|(n, (weight, zone))| place(n, *weight, *zone));
        Layout::new(1, places.collect())
    }

    fn any_layout() -> impl Strategy<Value = Layout> {
        prop::collection::vec((0..5u32, 0..4u32), 0..12).prop_map(|places| layout(&places))
    }

    /// How many of the glyphs each member holds, in the order of the numbers of members.
    fn held(layout: &Layout, members: u32, glyphs: u32, copies: u8) -> Vec<u32> {
        let mut held = BTreeMap::new();
        for n in 0..glyphs {
            layout.holders(&glyph(n), copies).into_iter().for_each(|key| *held.entry(key).or_insert(0) += 1);
        }
        (0..members).map(|n| held.get(&key(n)).copied().unwrap_or(0)).collect()
    }

    /// Five standard deviations of a binomial distribution: once in two million times it is further off.
    fn assert_near(count: u32, of: u32, share: f64) {
        let (of, count) = (f64::from(of), f64::from(count));
        let sigma = (of * share * (1.0 - share)).sqrt();
        assert!((count - of * share).abs() <= 5.0 * sigma, "{count} of {of}, expected {}", of * share);
    }

    #[test]
    fn logarithms_are_right_in_all_but_the_last_bits() {
        for u in [1, 2, 3, 7, 1 << 20, u64::MAX / 3, u64::MAX / 2, u64::MAX - (1 << 40), u64::MAX] {
            let exact = 64.0 - (u as f64).log2();
            let found = minus_log2(u) as f64 / (1u64 << FRACTION_BITS) as f64;
            assert!((found - exact).abs() < 1e-9, "{u}: {found} {exact}");
        }
        assert_eq!(minus_log2(0), minus_log2(1));
    }

    #[test]
    fn members_hold_in_proportion_to_their_weights() {
        let layout = layout(&[(1, 0), (2, 0), (3, 0), (4, 0), (0, 0)]);
        let held = held(&layout, 5, 20_000, 1);
        for (n, weight) in [(0, 1.0), (1, 2.0), (2, 3.0), (3, 4.0)] {
            assert_near(held[n], 20_000, weight / 10.0);
        }
        assert_eq!(held[4], 0, "it takes nothing");
    }

    #[test]
    fn equal_members_hold_equally_much_whatever_the_copies() {
        for (zones, copies) in [(1, 2), (1, 3), (5, 3), (10, 3)] {
            let places: Vec<(u32, u32)> = (0..10).map(|n| (1, n % zones)).collect();
            for count in held(&layout(&places), 10, 10_000, copies) {
                assert_near(count, 10_000, f64::from(copies) / 10.0);
            }
        }
    }

    /// Whoever computes something else has another layout, and finds nothing where it is.
    #[test]
    fn holders_are_these_on_every_machine() {
        let layout = layout(&[(1, 0), (2, 0), (3, 1), (1, 1), (4, 2)]);
        let number = |key: NodePublicKey| (0..5).find(|n| self::key(*n) == key).unwrap();
        let holders: Vec<Vec<u32>> =
            (0..6).map(|n| layout.holders(&glyph(n), 4).into_iter().map(number).collect()).collect();
        let expected = [[0, 2, 4, 1], [2, 4, 0, 1], [4, 0, 2, 3], [1, 4, 2, 0], [4, 2, 0, 3], [4, 2, 1, 3]];
        assert_eq!(holders, expected);
        assert_eq!(minus_log2(0x0123_4567_89ab_cdef), 8_591_343_276_641);
    }

    #[test]
    fn layout_round_trips_and_others_are_refused() {
        let layout = layout(&[(1, 0), (u32::MAX, 1), (0, 2)]);
        let bytes = layout.encode();
        assert_eq!(Layout::decode(&bytes), Ok(layout.clone()));
        for len in 0..bytes.len() {
            assert!(Layout::decode(&bytes[..len]).is_err());
        }
        let unsorted = Layout { places: layout.places.iter().rev().cloned().collect(), ..layout.clone() };
        assert_eq!(Layout::decode(&unsorted.encode()), Err(DecodeError::NotCanonical("the order of a layout")));
        let twice = Layout { places: [&layout.places[..1], &layout.places[..1]].concat(), ..layout };
        assert!(Layout::decode(&twice.encode()).is_err());
    }

    proptest! {
        #[test]
        fn there_are_as_many_holders_as_can_be_and_each_once(layout in any_layout(), n: u32, copies in 1..=COPIES_MAX) {
            let holders = layout.holders(&glyph(n), copies);
            let candidates = layout.places.iter().filter(|place| place.weight > 0).count();
            prop_assert_eq!(holders.len(), candidates.min(copies.into()));
            for place in &layout.places {
                let count = holders.iter().filter(|key| **key == place.key).count();
                prop_assert_eq!(count, usize::from(layout.is_holder(&place.key, &glyph(n), copies)));
                prop_assert!(count == 0 || place.weight > 0);
            }
        }

        #[test]
        fn order_in_which_members_are_told_does_not_matter(layout in any_layout(), n: u32) {
            let other = Layout::new(layout.epoch, layout.places.iter().rev().cloned().collect());
            prop_assert_eq!(layout.holders(&glyph(n), 3), other.holders(&glyph(n), 3));
        }

        #[test]
        fn when_a_member_goes_the_others_keep_what_they_hold(
            layout in any_layout(), gone: prop::sample::Index, n: u32, copies in 1..6u8
        ) {
            prop_assume!(!layout.places.is_empty());
            let gone = gone.get(&layout.places).clone();
            let rest = layout.places.iter().filter(|place| place.key != gone.key).cloned().collect();
            let (before, after) = (layout.holders(&glyph(n), copies), Layout::new(2, rest).holders(&glyph(n), copies));
            for holder in &before {
                prop_assert!(*holder == gone.key || after.contains(holder));
            }
            // The same read backwards: a member that comes takes over from others, and nothing else moves.
            prop_assert!(after.iter().filter(|holder| !before.contains(holder)).count() <= 1);
            prop_assert!(before.contains(&gone.key) || before == after);
        }

        #[test]
        fn member_that_grows_takes_over_and_nothing_else_moves(
            layout in any_layout(), grown: prop::sample::Index, n: u32, copies in 1..6u8
        ) {
            prop_assume!(!layout.places.is_empty());
            let mut places = layout.places.clone();
            let grown = grown.index(places.len());
            places[grown].weight += 3;
            let key = places[grown].key;
            let (before, after) = (layout.holders(&glyph(n), copies), Layout::new(2, places).holders(&glyph(n), copies));
            prop_assert!(after.iter().all(|holder| before.contains(holder) || *holder == key));
        }

        #[test]
        fn zone_holds_another_copy_only_when_all_others_have_theirs(layout in any_layout(), n: u32, copies in 1..8u8) {
            let holders = layout.holders(&glyph(n), copies);
            let mut zones: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
            for place in layout.places.iter().filter(|place| place.weight > 0) {
                let (members, held) = zones.entry(&place.zone).or_default();
                *members += 1;
                *held += usize::from(holders.contains(&place.key));
            }
            let most = zones.values().map(|(_, held)| *held).max().unwrap_or(0);
            for (members, held) in zones.values() {
                prop_assert!(*held + 1 >= most || held == members);
            }
        }
    }
}
