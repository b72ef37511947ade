"""Facts come from the settings beside the weights; what nothing shows is reported, with the option that changes it."""
