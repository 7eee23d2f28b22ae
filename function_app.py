# The Functions worker looks for this file, then imports the package function_app/ beside it: the app is there.
