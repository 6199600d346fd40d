"""The ten engagements that the reference's ranker predicts, in one order everywhere."""

from __future__ import annotations

ENGAGEMENTS = (
    "is_favorited",
    "is_retweeted",
    "is_replied",
    "is_good_profile_clicked",
    "is_video_playback_50",
    "is_reply_engaged_by_author",
    "is_good_clicked_v1",
    "is_good_clicked_v2",
    "is_negative_feedback",
    "is_reported",
)
"""Label columns. Good click v1: a click, and a favourite or a reply; v2: a click, and two minutes there."""
