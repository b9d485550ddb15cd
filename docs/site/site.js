// A page that is opened from a file may not fetch others, so the search shows titles there, without a passage of each.
if (location.protocol === "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
