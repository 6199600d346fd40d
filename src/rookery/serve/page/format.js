/** Numbers, ages and names as people read them. */

const MINUS = "−";

/** A signed amount: +0.213, −0.004, ≈0 where it changes no digit that a score shows. */
export function signed(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size < 5e-5) return "≈0";
  return `${value > 0 ? "+" : MINUS}${size < 0.0005 ? size.toFixed(4) : amount(size)}`;
}

/** Three digits behind the point, more where they would all be zero: 12.4, 1.284, 0.00021; a dash for what is not known. */
export function amount(value) {
  if (value === null) return "–";
  const size = Math.abs(value);
  const sign = value < 0 ? MINUS : "";
  if (size === 0) return "0";
  if (size < 0.0005) return sign + plain(size, 1);
  return sign + size.toFixed(size >= 100 ? 0 : size >= 10 ? 1 : 3);
}

/** A weight as typed: .005, 13.5, −369; no more digits than it has. */
export function weight(value) {
  return String(value).replace("-", MINUS);
}

/** A share in percent to a tenth, below zero too. */
export function tenths(share) {
  return `${(100 * share).toFixed(1).replace("-", MINUS)}%`;
}

/** A probability in percent, as short as two digits allow: 21%, 1.3%, 0.0042%. */
export function percent(share) {
  if (share === 0) return "0%";
  const value = 100 * share;
  return `${value >= 10 ? value.toFixed(0) : plain(value, 2)}%`;
}

/** "3 h" from two ISO times. */
export function age(created, now) {
  const minutes = Math.max(0, (Date.parse(now) - Date.parse(created)) / 60_000);
  if (minutes < 60) return `${Math.round(minutes)} min`;
  if (minutes < 60 * 48) return `${Math.round(minutes / 60)} h`;
  return `${Math.round(minutes / 1440)} d`;
}

export function count(value) {
  return value.toLocaleString("en");
}

const TASK_NAMES = {
  is_favorited: "favourite",
  is_retweeted: "retweet",
  is_replied: "reply",
  is_good_profile_clicked: "profile visit",
  is_video_playback_50: "half of video watched",
  is_reply_engaged_by_author: "reply answered by author",
  is_good_clicked_v1: "click, then engaged",
  is_good_clicked_v2: "click, then stayed",
  is_negative_feedback: "“not interested”",
  is_reported: "report",
};

/** The family of a task, which is its colour. */
const FAMILIES = {
  is_favorited: "approve",
  is_retweeted: "approve",
  is_replied: "talk",
  is_reply_engaged_by_author: "talk",
  is_good_profile_clicked: "look",
  is_good_clicked_v1: "look",
  is_good_clicked_v2: "look",
  is_video_playback_50: "watch",
  is_negative_feedback: "reject",
  is_reported: "reject",
};

export const FAMILY_NAMES = {
  approve: "favourites, retweets",
  talk: "replies",
  look: "clicks",
  watch: "video",
  reject: "rejection",
};

export function taskName(task) {
  return TASK_NAMES[task] ?? task;
}

export function familyOf(task) {
  return FAMILIES[task] ?? "watch";
}

export function sourceName(source) {
  return source === "in_network" ? "followed" : "discovered";
}

/** "topic 3" of "topic_3". */
export function topicName(topic) {
  return topic.replaceAll("_", " ");
}

export function mediaName(media) {
  return media === "none" ? "text" : media;
}

function plain(value, digits) {
  const places = Math.max(0, digits - 1 - Math.floor(Math.log10(value)));
  return value.toFixed(Math.min(places, 12)).replace(/(\.\d*?)0+$/, "$1").replace(/\.$/, "");
}
