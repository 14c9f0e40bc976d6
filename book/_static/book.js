// A page opened from a disk may not read other pages: there, results of the search come without excerpts, not with errors.
if (location.protocol === "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
