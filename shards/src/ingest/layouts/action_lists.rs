//! UCF101 and HMDB51: text files with a video a line, in three official splits ("folds").

use super::{Listed, Listing, TextFile, bad, folders, lacking};
use crate::{
    Result,
    ledger::{Action, LedgerEntry},
};
use std::collections::{BTreeSet, HashMap};

/// UCF101: `classInd.txt` (`1 ApplyEyeMakeup`), `trainlist01.txt` (`ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1`)
/// and `testlist01.txt` (the same without the number).
pub fn read_ucf(files: &[TextFile], fold: u8) -> Result<Listing> {
    let find = |name: &str| files.iter().find(|f| f.file == name);
    let how = "give --labels the folder of UCF101's lists (ucfTrainTestlist)";
    let classes = find("classInd.txt").ok_or_else(|| lacking(files, "classInd.txt", how))?;
    let mut names = Vec::new();
    for (line, text) in lines(classes) {
        let given = text.split_once(' ').and_then(|(n, name)| Some((n.parse::<usize>().ok()?, name.trim())));
        match given {
            Some((n, name)) if n == names.len() + 1 => names.push(name.to_string()),
            _ => {
                return Err(bad(
                    classes,
                    line,
                    format!("{text:?} is not number {} and a class", names.len() + 1),
                ));
            }
        }
    }
    let ids: HashMap<&str, usize> = names.iter().enumerate().map(|(i, n)| (n.as_str(), i)).collect();
    let mut rows = Vec::new();
    for (list, split) in [("trainlist", "train"), ("testlist", "test")] {
        let name = format!("{list}{fold:02}.txt");
        let file = find(&name).ok_or_else(|| lacking(files, &name, how))?;
        for (line, text) in lines(file) {
            let (path, number) = match text.rsplit_once(' ') {
                Some((path, n)) => (path.trim(), Some(n)),
                None => (text, None),
            };
            let (class, video) =
                path.split_once('/').ok_or_else(|| bad(file, line, format!("{path:?} is no class/video")))?;
            let id =
                *ids.get(class).ok_or_else(|| bad(file, line, format!("there is no class {class:?}")))?;
            if number.is_some_and(|n| n.parse::<usize>().ok() != Some(id + 1)) {
                let said = number.unwrap_or_default();
                return Err(bad(file, line, format!("it says class {said}, but {class} is {}", id + 1)));
            }
            rows.push(row(file, line, stem(video), id, class, split));
        }
    }
    Ok(Listing { names, rows, ledger: vec![] })
}

/// HMDB51: `<class>_test_split1.txt`, a line `<video>.avi 1`, where 1 is train, 2 is test and 0 neither.
pub fn read_hmdb(files: &[TextFile], fold: u8) -> Result<Listing> {
    let lists: Vec<&TextFile> = files.iter().filter(|f| is_hmdb(&f.file, Some(fold))).collect();
    if lists.is_empty() {
        let how = "give --labels the folder of HMDB51's lists (testTrainMulti_7030_splits)";
        return Err(lacking(files, &format!("file <class>_test_split{fold}.txt"), how));
    }
    let class_of = |f: &TextFile| f.file.rsplit_once("_test_split").map_or("", |(c, _)| c).to_string();
    let names: Vec<String> = lists.iter().map(|f| class_of(f)).collect::<BTreeSet<_>>().into_iter().collect();
    let (mut rows, mut ledger) = (Vec::new(), Vec::new());
    for file in lists {
        let class = class_of(file);
        let id = names.binary_search(&class).unwrap_or_default();
        for (line, text) in lines(file) {
            let (video, use_) =
                text.rsplit_once(' ').ok_or_else(|| bad(file, line, format!("{text:?} has no 0, 1 or 2")))?;
            let video = video.trim();
            match use_ {
                "1" => rows.push(row(file, line, stem(video), id, &class, "train")),
                "2" => rows.push(row(file, line, stem(video), id, &class, "test")),
                "0" => ledger.push(LedgerEntry {
                    source: format!("{class}/{video}"),
                    action: Action::Skipped,
                    reason: "not in this fold".into(),
                    detail: format!("{}, line {line}", file.name),
                }),
                other => return Err(bad(file, line, format!("{other:?} is none of 0, 1 and 2"))),
            }
        }
    }
    Ok(Listing { names, rows, ledger })
}

/// True for the name of a list of that fold, or of any.
pub fn is_hmdb(name: &str, fold: Option<u8>) -> bool {
    let number =
        name.rsplit_once("_test_split").and_then(|(_, n)| n.strip_suffix(".txt")?.parse::<u8>().ok());
    number.is_some_and(|n| fold.is_none_or(|fold| fold == n))
}

fn lines(file: &TextFile) -> impl Iterator<Item = (u64, &str)> {
    (1..).zip(file.text.lines().map(str::trim)).filter(|(_, text)| !text.is_empty())
}

fn stem(video: &str) -> &str {
    video.rsplit_once('.').map_or(video, |(stem, _)| stem)
}

fn row(file: &TextFile, line: u64, stem: &str, id: usize, class: &str, split: &str) -> Listed {
    Listed {
        file: file.name.clone(),
        line,
        stems: vec![(stem.into(), None)],
        folders: folders(Some(split), Some(class)),
        labels: vec![id as i32],
        spans: vec![],
        split: Some(split.into()),
    }
}
