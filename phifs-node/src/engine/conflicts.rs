//! Disputed names, as the control socket asks for them.

use phifs_core::namespace::coherence::Score;
use phifs_core::namespace::conflict::{Choice, Matter};
use phifs_core::namespace::row::Closure;
use phifs_core::volume::VolumeError;
use phifs_core::volume::local::{Explained, FoundConflict, Resolution};

use super::Engine;
use crate::control::Decision;
use crate::failure::{Failure, Kind};
use crate::report;
use crate::show::{self, Name};

impl Engine {
    pub fn conflicts(&self, path: &Name) -> Result<Vec<report::Conflict>, Failure> {
        let found = self.volume.conflicts(&path.bytes()).map_err(|error| explain(path, &error))?;
        let described = |FoundConflict { path, conflict }: &FoundConflict| {
            described(Name::new(path), Some(conflict.matter), &conflict.choices)
        };
        Ok(found.iter().map(described).collect())
    }

    pub fn why(&self, path: &Name) -> Result<report::Conflict, Failure> {
        let Explained { matter, choices, merge } =
            self.volume.explain(&path.bytes()).map_err(|error| explain(path, &error))?;
        let merge = merge.map(|merge| merge.map_or_else(|why| why.to_string(), |()| "merged".to_owned()));
        Ok(report::Conflict { merge, ..described(path.clone(), matter, &choices) })
    }

    pub fn resolve(
        &self,
        path: &Name,
        how: Decision,
        recursive: bool,
        dry_run: bool,
    ) -> Result<Vec<report::Resolution>, Failure> {
        let how = match how {
            Decision::Pick(rank) => Resolution::Pick(rank),
            Decision::KeepBoth => Resolution::KeepBoth,
            Decision::Newest => Resolution::Newest,
            Decision::Coherent => Resolution::Coherent,
        };
        let resolved = self.volume.resolve(&path.bytes(), how, recursive, dry_run);
        let resolved = resolved.map_err(|error| explain(path, &error))?;
        if resolved.is_empty() && !recursive {
            let failure = Failure::plain(format!("there is nothing to decide about {}", path.quoted()));
            return Err(failure.hint("phifs conflicts lists what there is; --recursive takes all below a directory"));
        }
        let told = |resolved: phifs_core::volume::local::Resolved| report::Resolution {
            path: Name::new(&resolved.path),
            kept: choice(&resolved.kept, None),
            beside: resolved.beside.iter().map(|path| Name::new(path)).collect(),
        };
        Ok(resolved.into_iter().map(told).collect())
    }
}

pub(super) fn described(path: Name, matter: Option<Matter>, choices: &[Choice]) -> report::Conflict {
    let next = choices.iter().skip(1).map(Some).chain([None]);
    report::Conflict {
        path,
        matter: matter.map(|matter| word(matter).into()),
        row: matter.map(|matter| matter.row(choices)),
        merge: None,
        choices: choices.iter().zip(next).map(|(this, next)| choice(this, next)).collect(),
    }
}

fn word(matter: Matter) -> &'static str {
    match matter {
        Matter::Content => "content",
        Matter::Name => "name",
        Matter::Type => "type",
    }
}

fn choice(choice: &Choice, next: Option<&Choice>) -> report::Choice {
    let words = words(&choice.score);
    let terms = choice.score.terms();
    report::Choice {
        dot: choice.dot.to_string(),
        author: choice.dot.author.to_string(),
        millis: choice.hlc.millis(),
        kind: show::kind(choice.kind).into(),
        bytes: choice.content().len_bytes().max(choice.target.len() as u64),
        exclusive: choice.exclusive,
        target: (!choice.target.is_empty()).then(|| Name::new(&choice.target)),
        score: terms
            .zip(words)
            .map(|(term, words)| report::Term { name: term.name.into(), value: term.value, words })
            .collect(),
        ahead_by: next.and_then(|next| choice.score.deciding(&next.score)).map(|term| term.name.into()),
    }
}

/// What the terms of a score say, in their order.
fn words(score: &Score) -> Vec<String> {
    use phifs_core::namespace::version::Validity;
    let closure = match score.closure {
        Closure::SyncAndClose => "synced and closed",
        Closure::Close => "closed",
        Closure::IdleFlush => "published while it was still open",
        Closure::CrashRecovered => "found after a crash",
    };
    let validity = match score.validity {
        Validity::Passes => "the bytes are what they seem to be",
        Validity::Opaque => "nothing tells whether the bytes are sound",
        Validity::Fails => "the bytes are damaged, and those before were not",
    };
    let mut words = vec![
        (if score.admissible { "by a trusted author" } else { "by an author who is not trusted" }).to_owned(),
        closure.to_owned(),
        validity.to_owned(),
        (if score.extant { "not emptied" } else { "became empty or all zeroes" }).to_owned(),
    ];
    words.extend(score.phase.map(|phase| format!("in touch with the others: {phase} of 7")));
    words.extend(score.depth.map(|depth| format!("work since the versions parted: {depth} of 7")));
    words.push(show::utc(score.hlc.millis()));
    words.push("decides only where all else is equal".to_owned());
    words
}

pub(super) fn explain(path: &Name, error: &VolumeError) -> Failure {
    let path = path.quoted();
    match error {
        VolumeError::NotFound | VolumeError::NotDirectory => {
            Failure::plain(format!("there is no {path} in the volume"))
                .hint("a path through the mount, or one from the root of the volume")
        }
        VolumeError::IsDirectory => Failure::plain(format!("{path} is a directory"))
            .hint("directories that were made at the same time are one; phifs conflicts lists what is in them"),
        VolumeError::Invalid(why) => Failure::new(Kind::Usage, format!("{path}: {why}")),
        error => Failure::plain(format!("{path}: {error}")),
    }
}
