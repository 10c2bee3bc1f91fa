//! Lists in exactly the published forms, joined with small files of the published names.

use super::*;
use crate::{
    ingest::{Found, Sources},
    ledger::Action,
};

/// A folder of videos (any bytes: nothing is decoded here) and one of annotations.
struct Set(tempfile::TempDir);

impl Set {
    fn new(videos: &[&str], annotations: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let videos = videos.iter().map(|v| (format!("videos/{v}"), "bytes"));
        let annotations = annotations.iter().map(|(name, text)| (format!("annotations/{name}"), *text));
        for (name, text) in videos.chain(annotations) {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        Self(dir)
    }

    fn sources(&self) -> Sources {
        Sources {
            videos: self.0.path().join("videos"),
            labels: Some(self.0.path().join("annotations")),
            split: "train".into(),
            fold: 1,
            ..Sources::default()
        }
    }

    fn find(&self) -> Found {
        self.sources().find().unwrap()
    }

    fn error(&self) -> String {
        let e = self.sources().find().unwrap_err();
        assert!(e.is_usage(), "{e}");
        e.to_string()
    }

    fn detect(&self) -> Layout {
        Layout::detect(&self.0.path().join("annotations")).unwrap()
    }
}

/// Clip id, labels by name, split.
fn clips(found: &Found) -> Vec<(&str, Vec<&str>, &str)> {
    let name = |l: &i32| found.labels[*l as usize].as_str();
    let clip = |i: &'_ crate::ingest::Input| i.labels.iter().map(name).collect();
    found.inputs.iter().map(|i| (i.clip_id.as_str(), clip(i), i.split.as_str())).collect()
}

fn ledger(found: &Found) -> Vec<(&str, &str)> {
    found.ledger.iter().map(|e| (e.source.as_str(), e.reason.as_str())).collect()
}

const KINETICS: &str = "label,youtube_id,time_start,time_end,split\n\
    testifying,---QUuC4vJs,84,94,train\n\
    \"catching or throwing baseball\",--6bJUbfpnQ,17,27,train\n\
    eating spaghetti,--3ouPhoy2A,20,30,train\n\
    eating spaghetti,--3ouPhoy2A,20,30,train\n";

#[test]
fn kinetics() {
    let validate =
        "label,youtube_id,time_start,time_end,split\ndribbling basketball,--4-0ihtnBU,58,68,validate\n";
    let test = "youtube_id,time_start,time_end,split\n--2RP1yRbcE,0,10,test\n";
    let set = Set::new(
        &[
            "train/testifying/---QUuC4vJs_000084_000094.mp4",
            "train/eating spaghetti/--3ouPhoy2A.mp4",
            "val/dribbling_basketball/--4-0ihtnBU_000058_000068.mp4",
            "test/--2RP1yRbcE_000000_000010.mkv",
            "train/testifying/unheard_of.mp4",
        ],
        &[
            ("train.csv", KINETICS),
            ("validate.csv", validate),
            ("test.csv", test),
            ("notes.csv", "a,b\n1,2\n"),
        ],
    );
    assert_eq!(set.detect(), Layout::Kinetics);
    let found = set.find();
    assert_eq!(
        clips(&found),
        [
            ("test/--2RP1yRbcE_000000_000010", vec![], "test"),
            ("train/eating spaghetti/--3ouPhoy2A", vec!["eating spaghetti"], "train"),
            ("train/testifying/---QUuC4vJs_000084_000094", vec!["testifying"], "train"),
            ("val/dribbling_basketball/--4-0ihtnBU_000058_000068", vec!["dribbling basketball"], "val"),
        ]
    );
    // All labels of the lists have ids, also those whose videos are gone.
    assert_eq!(found.labels[0], "catching or throwing baseball");
    assert_eq!(
        ledger(&found),
        [
            ("--6bJUbfpnQ_000017_000027", "missing"),
            ("train/eating spaghetti/--3ouPhoy2A.mp4", "listed twice"),
            ("train/testifying/unheard_of.mp4", "not listed"),
        ]
    );
    assert!(found.ledger[0].detail.contains("train.csv, line 3"), "{}", found.ledger[0].detail);
    assert_eq!(found.ledger[1].action, Action::Repaired);

    let whole = Sources { untrimmed: true, allow_unlabelled: true, ..set.sources() }.find().unwrap();
    let cut = |id: &str| whole.inputs.iter().find(|i| i.clip_id.starts_with(id)).unwrap().cut;
    assert_eq!(cut("train/eating"), Some(Cut { start: 20.0, end: Some(30.0) }));
    assert_eq!(cut("train/testifying/---"), None);
    assert_eq!(whole.inputs.len(), 5);

    for (line, part) in [
        ("testifying,,84,94,train", "youtube_id is empty"),
        ("testifying,x,soon,94,train", "time_start is \"soon\""),
        ("testifying,x,94,84,train", "not after its start"),
        ("testifying,x,94", "line 6"),
    ] {
        let e = Set::new(&["x.mp4"], &[("train.csv", &format!("{KINETICS}{line}\n"))]).error();
        assert!(e.contains("train.csv, line 6") && e.contains(part), "{e}");
    }
    let twice = ["a/---QUuC4vJs_000084_000094.mp4", "b/---QUuC4vJs_000084_000094.mp4"];
    let e = Set::new(&twice, &[("train.csv", KINETICS)]).error();
    assert!(e.contains("line 2 may mean a/---QUuC4vJs_000084_000094.mp4 or b/"), "{e}");
    let e = Set::new(&["other.mp4"], &[("train.csv", KINETICS)]).error();
    assert!(
        e.contains("none of 4 is among the 1 files") && e.contains("---QUuC4vJs_000084_000094 or"),
        "{e}"
    );
}

const SSV2_LABELS: &str = r#"{
"Approaching something with your camera":"0",
"Holding something next to something":"1"
}"#;

#[test]
fn something_something_v2() {
    let train = r#"[
{"id":"78687","label":"holding potato next to vicks vaporub bottle","template":"Holding [something] next to [something]","placeholders":["potato","vicks vaporub bottle"]},
{"id":"42326","label":"approaching a tree","template":"Approaching [something] with your camera","placeholders":["tree"]}
]"#;
    let validation = train.replace("78687", "74225").replace("42326", "116154");
    let test = "[{\"id\":\"1420\"},\n{\"id\":\"999\"}]";
    let answers = "1420;Approaching something with your camera\n";
    let prefix = "something-something-v2-";
    let set = Set::new(
        &["78687.webm", "42326.webm", "74225.webm", "1420.webm", "999.webm"],
        &[
            (&format!("{prefix}labels.json"), SSV2_LABELS),
            (&format!("{prefix}train.json"), train),
            (&format!("{prefix}validation.json"), &validation),
            (&format!("{prefix}test.json"), test),
            ("test-answers.csv", answers),
        ],
    );
    assert_eq!(set.detect(), Layout::SomethingV2);
    let found = set.find();
    assert_eq!(
        found.labels,
        ["Approaching something with your camera", "Holding something next to something"]
    );
    let (near, hold) = (vec![found.labels[0].as_str()], vec![found.labels[1].as_str()]);
    assert_eq!(
        clips(&found),
        [
            ("1420", near.clone(), "test"),
            ("42326", near, "train"),
            ("74225", hold.clone(), "val"),
            ("78687", hold, "train"),
            ("999", vec![], "test"),
        ]
    );
    assert_eq!(ledger(&found), [("116154", "missing")]);

    let e = |files: &[(&str, &str)]| Set::new(&["1.webm"], files).error();
    let told = e(&[("labels.json", SSV2_LABELS), ("train.json", "[{\"id\":\"1\",\n\"label\":3")]);
    assert!(told.contains("train.json, line 2"), "{told}");
    let told = e(&[("labels.json", SSV2_LABELS), ("train.json", r#"[{"id":"1","template":"Eating [x]"}]"#)]);
    assert!(told.contains("train.json, entry 1: labels.json has no template \"Eating x\""), "{told}");
    let told = e(&[("labels.json", r#"{"a":"0","b":"0"}"#), ("train.json", "[]")]);
    assert!(told.contains("labels.json"), "{told}");
    let told = e(&[("validation.json", "[]")]);
    assert!(told.contains("no labels.json"), "{told}");
}

#[test]
fn ucf101() {
    // As published: DOS line ends, and names without the number in the test lists.
    let classes = "1 ApplyEyeMakeup\r\n2 ApplyLipstick\r\n";
    let train =
        "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1\r\nApplyLipstick/v_ApplyLipstick_g08_c01.avi 2\r\n";
    let test = "ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi\r\n";
    let lists = [("classInd.txt", classes), ("trainlist01.txt", train), ("testlist01.txt", test)];
    let videos = [
        "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi",
        "ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi",
        "ApplyLipstick/v_ApplyLipstick_g08_c01.avi",
    ];
    let set = Set::new(&videos, &lists);
    assert_eq!(set.detect(), Layout::Ucf101);
    let found = set.find();
    assert_eq!(
        clips(&found),
        [
            ("ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01", vec!["ApplyEyeMakeup"], "test"),
            ("ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01", vec!["ApplyEyeMakeup"], "train"),
            ("ApplyLipstick/v_ApplyLipstick_g08_c01", vec!["ApplyLipstick"], "train"),
        ]
    );
    assert!(found.ledger.is_empty());
    let e = Sources { fold: 2, ..set.sources() }.find().unwrap_err().to_string();
    assert!(e.contains("trainlist02.txt"), "{e}");
    let e = Sources { fold: 4, ..set.sources() }.find().unwrap_err().to_string();
    assert!(e.contains("--fold 4"), "{e}");
    let bad = |list: &str| Set::new(&videos, &[lists[0], ("trainlist01.txt", list), lists[2]]).error();
    assert!(bad("ApplyLipstick/x.avi 1\n").contains("line 1: it says class 1, but ApplyLipstick is 2"));
    assert!(bad("\nKayaking/x.avi 3\n").contains("line 2: there is no class \"Kayaking\""));
    assert!(bad("x.avi 1\n").contains("no class/video"));
}

#[test]
fn hmdb51() {
    let brush = "April_09_brush_hair_u_nm_np1_ba_goo_0.avi 1 \n\
        atheismus_brush_hair_h_nm_np1_ba_med_1.avi 2 \n\
        Blonde_brush_hair_u_nm_np2_le_goo_0.avi 0 \n";
    let wheel =
        "Acrobacias_cartwheel_f_cm_np1_ba_bad_8.avi 1 \n#1_wheel!_cartwheel_f_cm_np1_le_med_3.avi 2 \n";
    let set = Set::new(
        &[
            "brush_hair/April_09_brush_hair_u_nm_np1_ba_goo_0.avi",
            "brush_hair/atheismus_brush_hair_h_nm_np1_ba_med_1.avi",
            "brush_hair/Blonde_brush_hair_u_nm_np2_le_goo_0.avi",
            "cartwheel/#1_wheel!_cartwheel_f_cm_np1_le_med_3.avi",
        ],
        &[
            ("brush_hair_test_split1.txt", brush),
            ("cartwheel_test_split1.txt", wheel),
            ("brush_hair_test_split2.txt", "nonsense"),
        ],
    );
    assert_eq!(set.detect(), Layout::Hmdb51);
    let found = set.find();
    assert_eq!(
        clips(&found),
        [
            ("brush_hair/April_09_brush_hair_u_nm_np1_ba_goo_0", vec!["brush_hair"], "train"),
            ("brush_hair/atheismus_brush_hair_h_nm_np1_ba_med_1", vec!["brush_hair"], "test"),
            ("cartwheel/#1_wheel!_cartwheel_f_cm_np1_le_med_3", vec!["cartwheel"], "test"),
        ]
    );
    assert_eq!(
        ledger(&found),
        [
            ("brush_hair/Blonde_brush_hair_u_nm_np2_le_goo_0.avi", "not in this fold"),
            ("Acrobacias_cartwheel_f_cm_np1_ba_bad_8", "missing"),
        ]
    );
    let e = Sources { fold: 2, ..set.sources() }.find().unwrap_err().to_string();
    assert!(e.contains("brush_hair_test_split2.txt, line 1"), "{e}");
    let e = Sources { fold: 3, ..set.sources() }.find().unwrap_err().to_string();
    assert!(e.contains("<class>_test_split3.txt"), "{e}");
}

#[test]
fn charades() {
    let header = "id,subject,scene,quality,relevance,verified,script,objects,descriptions,actions,length\n";
    let train = format!(
        "{header}46GP8,HR43,Kitchen,6,7,Yes,\"A person cooks, looking out.\",food;stove,\"He \"\"cooks\"\".\",\
         c002 11.90 21.20;c000 0.00 12.60;c002 22.00 23.50,24.83\n\
         N11GT,0KZ7,Stairs,7,7,Yes,Standing.,,Standing.,,18.33\n"
    );
    let test = format!("{header}YSKX3,UAQV,Home,6,7,No,x,y,z,c001 0.00 33.00,32.50\n");
    let classes = "c000 Holding some clothes\nc001 Putting clothes somewhere\nc002 Taking some clothes from somewhere\n";
    let lists = [
        ("Charades_v1_train.csv", train.as_str()),
        ("Charades_v1_test.csv", &test),
        ("Charades_v1_classes.txt", classes),
    ];
    let set = Set::new(&["46GP8.mp4", "N11GT.mp4", "YSKX3.mp4"], &lists);
    assert_eq!(set.detect(), Layout::Charades);
    let found = set.find();
    assert_eq!(found.inputs[0].labels, [2, 0]);
    assert_eq!(
        clips(&found)[1..],
        [("N11GT", vec![], "train"), ("YSKX3", vec!["Putting clothes somewhere"], "test")]
    );
    // Cut into clips, each has the actions that happen during it.
    let video = &found.inputs[0];
    assert_eq!(video.labels_between(0.0, 10.0), [0]);
    assert_eq!(video.labels_between(10.0, 20.0), [2, 0]);
    assert!(video.labels_between(21.2, 22.0).is_empty());
    assert_eq!(video.labels_between(22.5, 30.0), [2]);
    for (actions, part) in [
        ("c009 1 2", "no class \"c009\""),
        ("c000 1", "not a code, a start and an end"),
        ("c000 one 2", "\"one\" in the action"),
    ] {
        let list = format!("{header}46GP8,,,,,,,,,{actions},1\n");
        let e = Set::new(&["46GP8.mp4"], &[lists[2], ("Charades_v1_train.csv", &list)]).error();
        assert!(e.contains("Charades_v1_train.csv, line 2") && e.contains(part), "{e}");
    }
    let e = Set::new(&["46GP8.mp4"], &lists[..2]).error();
    assert!(e.contains("Charades_v1_classes.txt"), "{e}");
}

#[test]
fn unknown_annotations_are_told() {
    let e = Set::new(&["a.mp4"], &[("readme.txt", "hello")]).error();
    assert!(e.contains("recognise the annotations") && e.contains("--layout"), "{e}");
}

#[test]
fn lists_name_folders_of_images_alike() {
    let set = Set::new(
        &["v_A_g01_c01/img_00001.jpg", "v_A_g01_c01/img_00002.jpg", "v.B_g02/1.png"],
        &[
            ("classInd.txt", "1 A\n"),
            ("trainlist01.txt", "A/v_A_g01_c01.avi 1\n"),
            ("testlist01.txt", "A/v.B_g02.avi\n"),
        ],
    );
    let found = Sources { images_fps: Some(12.0), ..set.sources() }.find().unwrap();
    assert_eq!(clips(&found), [("v.B_g02", vec!["A"], "test"), ("v_A_g01_c01", vec!["A"], "train")]);
    assert_eq!(found.inputs[1].size, 2);
}
